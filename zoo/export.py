"""Write the trained weights as the shipped model: `python zoo/export.py [STAGE]`, bf16 safetensors with its processor."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from build import EOS, PAD, make_model, make_processor
from train import RUNS, STAGES
from transformers import GenerationConfig

OUT = Path(__file__).parents[1] / "src/atp/models/atp-mini-llava"
LIMIT = 12_000_000  # bytes


def main(stage: str = "joint") -> None:
    state = torch.load(RUNS / f"{stage}.pt", weights_only=True)
    model = make_model()
    model.load_state_dict(state["model"])
    model = model.to(torch.bfloat16).eval()
    model.generation_config = GenerationConfig(
        eos_token_id=EOS, pad_token_id=PAD, bos_token_id=2, max_new_tokens=48, do_sample=False
    )
    OUT.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(OUT)
    make_processor().save_pretrained(OUT)
    size = sum(f.stat().st_size for f in OUT.iterdir())
    assert size <= LIMIT, f"{size} bytes, at most {LIMIT} are shipped"
    print(f"{OUT}: {size / 1e6:.2f} MB after {state['step']} steps of {stage}")


if __name__ == "__main__":
    chosen = sys.argv[1] if len(sys.argv) > 1 else STAGES[-1]
    main(chosen)
