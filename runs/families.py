"""Write `docs/families/`: for every family its stacks, where its FLOPs are, how low a budget can go and why. Generated only.

`python runs/families.py` builds each architecture at its true size without weights and counts; nothing is downloaded.
"""

from __future__ import annotations

from pathlib import Path

from atp.adapters import adapt
from atp.adapters.architectures import ARCHITECTURES, HUB, skeleton
from atp.adapters.base import Adapter
from atp.budget.cost import Flops, Workload, count
from atp.budget.shape import ModelShape
from atp.budget.solve import default_sites, solve, workable
from atp.errors import UnreachableBudget
from atp.methods import METHODS
from atp.plan import Site

OUT = Path(__file__).parents[1] / "docs" / "families"
WORK = Workload(images=1, text=32, answer=3)
CONNECTS = {
    "rows": "every patch passes the connector alone: patches that left the tower pass neither connector nor language model",
    "grid": "the connector wants the whole grid: it runs in full, and visual tokens whose patches left enter no language layer",
    "keys": "queries of the connector look at the live patches; visual tokens are those queries and leave in the language model",
}
PAGE = """# {title}

`config.model_type` {kind}, counted as `{name}` ({hub}): {parameters:.2f} billion parameters.

| stack | layers | width | tokens of one image | share of the FLOPs |
|---|---|---|---|---|
| vision tower | {vision.layers} | {vision.hidden} | {patches} patches{group} | {tower:.0%} |
| connector | | | | {bridge:.1%} |
| language model | {language.layers} | {language.hidden} | {visual} visual tokens | {prefill:.0%} prefill, {decode:.1%} decode |

{connects}.{mask}

How low can a budget go (one image, {work.text} text tokens, {work.answer} answer tokens, default sites, one token left)?

| where tokens leave | lowest share of the FLOPs |
|---|---|
| language model only | {low_language:.0%} |
| tower and language model | {low_both:.0%} |

{why}

```python
import atp
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained("{hub}", dtype="auto")
processor = AutoProcessor.from_pretrained("{hub}")
inputs = processor(images=image, text=prompt, return_tensors="pt")
with atp.prune(model, budget={budget}, processor=processor) as run:
    out = model.generate(**inputs, max_new_tokens=20)
print(run.report())
```
"""


def usual(shape: ModelShape) -> tuple[Site, ...]:
    """Where `atp` prunes unless told otherwise."""
    own = METHODS.get("atp")().default_sites(shape)
    return default_sites(shape) if own is None else workable(shape, own)


def lowest(adapter: Adapter, stacks: tuple[str, ...]) -> float:
    """Smallest share of the FLOPs that default sites of these stacks reach with the method `atp`."""
    sites = [site for site in usual(adapter.shape) if site.stack in stacks]
    try:
        return solve(adapter.shape, 1e-6, "atp", WORK, sites).budget or 0.0
    except UnreachableBudget as limit:
        return limit.lowest


def page(name: str) -> tuple[str, tuple[str, str, float, float, float]]:
    """The page of an architecture, and its row of the index."""
    model = skeleton(name)
    adapter = adapt(model)
    shape, spent = adapter.shape, count(adapter.shape, WORK)
    shares = {part: getattr(spent, part) / spent.total for part in Flops(0, 0, 0, 0).to_dict() if part != "total"}
    language, both = lowest(adapter, ("language",)), lowest(adapter, ("vision", "language"))
    kind = ARCHITECTURES[name]["model_type"]
    first = min((site.layer for site in usual(shape) if site.stack == "vision"), default=0)
    visual = 1 - (count(shape, Workload(0, WORK.text, WORK.answer)).total / spent.total)
    begin = f"the {first} tower layers before the first site" if first else "the embedding of all patches"
    why = (
        f"{visual:.0%} of the FLOPs depend on the image. What stays at the lowest budget: {begin}, the language layers before "
        f"theirs, and the text's own {1 - visual:.0%}."
    )
    text = PAGE.format(
        title=name, kind=f"`{kind}`", name=name, hub=HUB[name], parameters=sum(p.numel() for p in model.parameters()) / 1e9,
        vision=shape.vision, language=shape.language, patches=shape.patches, visual=shape.visual, tower=shares["vision"],
        group=f", {shape.group} leave as one" if shape.group > 1 else "", bridge=shares["connector"], prefill=shares["prefill"],
        decode=shares["decode"], connects=CONNECTS[adapter.connects].capitalize(), work=WORK, low_language=language,
        low_both=both,
        mask="" if adapter.vision.maskable else " Tower layers take no mask: counts are the same for all images of a batch.",
        why=why, budget=max(0.6, round(both + 0.05, 2)),
    )  # fmt: skip
    return text, (name, kind, shares["vision"], language, both)


def main() -> None:
    """Write all pages and the index."""
    OUT.mkdir(parents=True, exist_ok=True)
    rows = []
    for name in ARCHITECTURES:
        text, row = page(name)
        (OUT / f"{name}.md").write_text(text, encoding="utf-8")
        rows.append(row)
        print(*row)
    lines = [
        "# Families",
        "",
        "True sizes, counted by `python runs/families.py`: one image, 32 text tokens, 3 answer tokens, default sites.",
        "",
        "| architecture | model_type | FLOPs in the tower | lowest, language model only | lowest, both stacks |",
        "|---|---|---|---|---|",
        *(f"| [{n}]({n}.md) | `{k}` | {t:.0%} | {low:.0%} | {both:.0%} |" for n, k, t, low, both in rows),
        "",
        "A budget of 60 % is within reach of the language model alone only where the last but one column is below 60 %.",
    ]
    (OUT / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
