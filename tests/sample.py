"""Random `Tokens` with everything that a method may read, in every shape that breaks careless code."""

from __future__ import annotations

import pkgutil
from dataclasses import replace
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

import atp.methods
from atp.tokens import RATERS, Rows, Text, Tokens

for module in pkgutil.iter_modules(atp.methods.__path__):
    import_module(f"atp.methods.{module.name}")

KINDS = ("plain", "ties", "duplicates", "constant", "zeros", "bfloat16", "dead", "ragged")


def rows(batch: int, raters: int, count: int, dtype: torch.dtype = torch.float64, width: int = 0, flat: bool = False) -> Rows:
    """Softmax rows; the last rater of every other input is not valid where there are several."""
    logits = torch.zeros(batch, raters, count) if flat else torch.randn(batch, raters, count) * 2
    valid = torch.ones(batch, raters, dtype=torch.bool)
    if raters > 1:
        valid[1::2, -1] = False
    sees = torch.ones(batch, raters, count, dtype=torch.bool)
    embeddings = torch.randn(batch, raters, width).to(dtype) if width else None
    wide = torch.promote_types(dtype, torch.float32)
    register = torch.full((batch, raters), 1 / count, dtype=wide)
    return Rows(logits.to(wide).softmax(2), valid, sees, embeddings, register)


def text(batch: int, count: int, width: int, heads: int, dtype: torch.dtype) -> Text:
    """Text tokens; every other input has one less, the first two are no question."""
    valid = torch.ones(batch, count, dtype=torch.bool)
    valid[1::2, -1] = False
    asks = valid.clone()
    asks[:, :2] = False
    states = [torch.randn(batch, count, width).to(dtype) for _ in range(2)]
    return Text(*states, valid, asks, torch.randn(batch, count, heads, width // heads).to(dtype))


def tokens(kind: str = "plain", stack: str = "language", layer: int = 2, batch: int = 3, side: int = 6, seed: int = 0,
           width: int = 16, heads: int = 2, cls: bool = True, **changes: Any) -> Tokens:  # fmt: skip
    """Make the tokens of a batch; `kind` says in which way they are difficult."""
    torch.manual_seed(seed)
    count, dtype = side * side, torch.bfloat16 if kind == "bfloat16" else torch.float64
    hidden, keys = torch.randn(batch, count, width), torch.randn(batch, count, heads, width // heads)
    if kind == "duplicates":
        hidden, keys = hidden[:, torch.arange(count) % 5], keys[:, torch.arange(count) % 5]
    if kind in ("constant", "zeros"):
        hidden, keys = hidden[:, :1].expand_as(hidden), keys[:, :1].expand_as(keys)
    if kind == "zeros":
        hidden, keys = torch.zeros_like(hidden), torch.zeros_like(keys)
    alive, started = torch.ones(batch, count, dtype=torch.bool), [count] * batch
    if kind == "dead":
        alive = torch.rand(batch, count) < 0.6
        alive[:, 0] = True
    if kind == "ragged":
        started = [count - 5 * row for row in range(batch)]
        alive = torch.arange(count) < torch.tensor(started).unsqueeze(1)
    flat, number = kind in ("ties", "constant", "zeros"), torch.arange(count)
    many = {"last": 1, "class": 1, "question": 5, "visual": 8}
    present = [one for one in RATERS if one in many and (cls or one != "class")]
    made = {one: rows(batch, many[one], count, dtype, width, flat) for one in present}
    made = {
        one: replace(row, values=row.values * alive.unsqueeze(1), sees=row.sees & alive.unsqueeze(1)) for one, row in made.items()
    }
    place = torch.stack([number // side, number % side], 1).expand(batch, -1, -1)
    states = {name: value.to(dtype) for name, value in (("h", hidden), ("k", keys), ("e", torch.randn(batch, count, width)))}
    said = text(batch, 6, width, heads, dtype)
    joint = (torch.randn(batch, count, width).to(dtype), torch.randn(batch, width).to(dtype))
    fields: dict[str, Any] = {
        "stack": stack,
        "layer": layer,
        "alive": alive,
        "started": tuple(started),
        "position": place,
        "image": torch.zeros(batch, count, dtype=torch.int64),
        "grid": (side, side),
        "rows": made,
        "carried": torch.rand(batch, count).masked_fill(~alive, torch.nan),
        "ids": torch.randint(0, 50, (batch, count)),
        "_hidden": lambda: states["h"],
        "_keys": lambda: states["k"],
        "_embeddings": lambda: states["e"],
        "_text": lambda: said,
        "_joint": lambda: joint,
    }
    return Tokens(**(fields | changes))


def pick(made: Tokens, order: Tensor, length: int | None = None) -> Tokens:
    """Take inputs `order` out of a batch, without the padding beyond `length` tokens."""

    def cut(value: Tensor | None) -> Any:
        return None if value is None else value[order]

    def short(value: Tensor | None) -> Any:
        return None if value is None else value[order][:, :length]

    rows_ = {}
    for kind, row in made.rows.items():
        values, sees = row.values[order][..., :length], row.sees[order][..., :length]
        rows_[kind] = Rows(values, row.valid[order], sees, cut(row.embeddings), cut(row.register))
    hidden, keys, embeddings = short(made.hidden), short(made.keys), short(made.embeddings)
    said, joint = made.text, made.joint
    assert joint is not None
    words = Text(said.hidden[order], said.embeddings[order], said.valid[order], said.asks[order], cut(said.keys))
    return replace(
        made,
        alive=short(made.alive),
        started=tuple(made.started[int(i)] for i in order),
        position=short(made.position),
        image=short(made.image),
        rows=rows_,
        carried=short(made.carried),
        sizes=short(made.sizes),
        ids=short(made.ids),
        _hidden=lambda: hidden,
        _keys=lambda: keys,
        _embeddings=lambda: embeddings,
        _text=lambda: words,
        _joint=lambda: (short(joint[0]), joint[1][order]),
    )


def shuffled(made: Tokens, order: Tensor) -> Tokens:
    """The same batch with its inputs in another order."""
    return pick(made, order)
