"""Write trained weights as a shipped model: `python zoo/export.py [STAGE] [--backbone B]`, bf16 safetensors and processor.

With `--slim FILE`, write a checkpoint of the weights alone instead (a fifth of the size): what travels back from another machine.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from backbones import BACKBONES, get
from build import BOS, EOS, PAD
from feed import STAGES
from train import Job, save
from transformers import GenerationConfig

MODELS = Path(__file__).parents[1] / "src/atp/models"
LIMIT = 12_000_000  # bytes


def export(backbone: str, stage: str, out: Path | None = None) -> Path:
    """Write the folder `out`, by default the shipped one, from the stage's checkpoint."""
    state = torch.load(Job(stage, 0.0, backbone).path(stage), weights_only=True)
    kind = get(backbone)
    model = kind.make_model()
    model.load_state_dict(state["model"])
    model = model.to(torch.bfloat16).eval()
    settings = GenerationConfig(eos_token_id=EOS, pad_token_id=PAD, bos_token_id=BOS, max_new_tokens=48, do_sample=False)
    model.generation_config = settings
    out = out or MODELS / f"atp-mini-{backbone}"
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out)
    kind.make_processor().save_pretrained(out)
    size = sum(f.stat().st_size for f in out.iterdir())
    assert size <= LIMIT, f"{size} bytes, at most {LIMIT} are shipped"
    print(f"{out}: {size / 1e6:.2f} MB after {state['step']} steps of {stage}")
    return out


def slim(backbone: str, stage: str, file: Path) -> None:
    """Keep of a checkpoint the weights in bf16 and how far it is; a stage can go on from it, its moments begin anew."""
    state = torch.load(Job(stage, 0.0, backbone).path(stage), weights_only=True)
    weights = {part: {key: value.bfloat16() for key, value in state[part].items()} for part in ("model", "heads")}
    save(file, weights | {"elapsed": state["elapsed"], "step": state["step"]})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", nargs="?", default="joint", choices=STAGES)
    parser.add_argument("--backbone", default="llava", choices=BACKBONES)
    parser.add_argument("--out", type=Path, help="folder; default: src/atp/models/atp-mini-<backbone>")
    parser.add_argument("--slim", type=Path, metavar="FILE")
    args = parser.parse_args()
    if args.slim:
        slim(args.backbone, args.stage, args.slim)
    else:
        export(args.backbone, args.stage, args.out)


if __name__ == "__main__":
    main()
