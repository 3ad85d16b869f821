"""Begin blip2 or flamingo from the shipped `atp-mini-llava`: `python zoo/warm.py BACKBONE` writes its vision checkpoint.

Both papers start from a trained, frozen image encoder; ours is that of `atp-mini-llava`. Idefics' tower has the same modules, so
it is copied exactly. Blip2's has no norm before its first layer: that norm is folded into the embeddings with its mean scale,
which is approximate, so blip2 goes through a short vision stage first. Word embeddings are copied too, and for flamingo all
parts of the language layers that have the same shape.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from backbones import get
from build import vocabulary
from data import make_batch
from losses import Heads
from torch import Tensor, nn
from train import RUNS, save
from transformers import LlavaForConditionalGeneration

DONOR = Path(__file__).parents[1] / "src/atp/models/atp-mini-llava"


def centred(x: Tensor) -> Tensor:
    """What a layer norm takes off: the mean over channels, the first dimension of conv weights and the last of vectors."""
    return x - x.mean(0 if x.ndim == 4 else -1, keepdim=True)


def folded(tower: nn.Module) -> dict[str, Tensor]:
    """CLIP's embeddings and the norm behind them as Blip2's embeddings; the norm's divisor is its mean over 64 scenes."""
    parts, norm = tower.embeddings, tower.pre_layrnorm
    with torch.no_grad():
        raw = parts(make_batch(list(range(64)), {piece: i for i, piece in enumerate(vocabulary())}, 0, 0).pixels)
        scale = norm.weight / raw.std(-1).mean()
        places = parts.position_embedding.weight
        first = centred(parts.class_embedding + places[0])
        return {
            "embeddings.patch_embedding.weight": centred(parts.patch_embedding.weight) * scale.view(-1, 1, 1, 1),
            "embeddings.patch_embedding.bias": torch.zeros_like(norm.bias),
            "embeddings.class_embedding": torch.zeros(1, 1, len(scale)),
            "embeddings.position_embedding": (torch.cat([first[None], centred(places[1:])]) * scale + norm.bias)[None],
        }


def as_blip2(tower: nn.Module) -> dict[str, Tensor]:
    """A CLIP tower's weights under the names of Blip2's."""
    told = folded(tower)
    for index, layer in enumerate(tower.encoder.layers):
        here, a = f"encoder.layers.{index}.", layer.self_attn
        own = {
            "self_attn.qkv.weight": torch.cat([a.q_proj.weight, a.k_proj.weight, a.v_proj.weight]),
            "self_attn.qkv.bias": torch.cat([a.q_proj.bias, a.k_proj.bias, a.v_proj.bias]),
            "self_attn.projection.weight": a.out_proj.weight,
            "self_attn.projection.bias": a.out_proj.bias,
        }
        same = {
            f"{part}.{key}": value
            for part in ("layer_norm1", "layer_norm2", "mlp")
            for key, value in getattr(layer, part).state_dict().items()
        }
        told |= {here + key: value for key, value in (own | same).items()}
    return told


def fits(have: dict[str, Tensor], given: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of `given`, what `have` names with the same shape."""
    return {key: value for key, value in given.items() if key in have and have[key].shape == value.shape}


def borrow(name: str) -> nn.Module:
    """A model of that backbone with what it can take from `atp-mini-llava`."""
    donor = LlavaForConditionalGeneration.from_pretrained(DONOR, dtype=torch.float32).eval()
    backbone = get(name)
    model = backbone.make_model()
    tower = getattr(donor.model.vision_tower, "vision_model", donor.model.vision_tower)
    vision = backbone.vision(model)
    given = as_blip2(tower) if name == "blip2" else tower.state_dict()
    took = fits(vision.state_dict(), given)
    if len(took) < len(given) - 2:  # post_layernorm's two may have no place
        raise ValueError(f"only {len(took)} of {len(given)} parts of the tower fit {name}")
    vision.load_state_dict(took, strict=False)
    text = donor.model.language_model
    with torch.no_grad():
        words = text.embed_tokens.weight
        backbone.embed(model)[: len(words)] = words
    if name == "flamingo":
        model.model.load_state_dict(
            fits(model.model.state_dict(), {k: v for k, v in text.state_dict().items() if k.startswith("layers.")}), strict=False
        )
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("backbone", choices=("blip2", "flamingo"))
    parser.add_argument("--to", type=Path, help="the checkpoint; default: that of the vision stage")
    args = parser.parse_args()
    backbone = get(args.backbone)
    model, heads = borrow(args.backbone), Heads(side=backbone.side)
    to = args.to or RUNS / f"{backbone.prefix}vision.pt"
    state = {"model": model.state_dict(), "heads": heads.state_dict(), "elapsed": 0.0, "step": 0, "t": 0}
    save(to, state)
    print(f"wrote {to}")


if __name__ == "__main__":
    main()
