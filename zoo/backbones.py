"""What the stages ask of a backbone, and the registry: `llava`, `blip2`, `flamingo`."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from build import IMAGE, PATCH, SIZE, make_model, make_processor
from data import PREFIX
from packed import TEXT_START, causal_mask, language, phases, tower
from torch import Tensor, nn
from torch.nn import functional as F

BACKBONES = ("llava", "blip2", "flamingo")
PATCHES = (SIZE // PATCH) ** 2


def get(name: str) -> Backbone:
    """The backbone of that name; its file is imported when it is asked for."""
    if name not in BACKBONES:
        raise ValueError(f"unknown backbone {name!r}; expected one of: {', '.join(BACKBONES)}")
    if name == "llava":
        return Llava()
    found: Backbone = importlib.import_module(name).BACKBONE
    return found


class Backbone(ABC):
    """Builds a true transformers model and trains it with a packed forward of its own.

    `tower` and `language` are compiled; their weights are the model's. B images, P patches, L visual tokens, K questions of T
    tokens.
    """

    name: ClassVar[str]
    side: ClassVar[int]
    """Visual tokens a row of the image: 14 = the patches themselves, else a resampler's latents, one a cell at first."""

    @property
    def resampled(self) -> bool:
        return self.side**2 != PATCHES

    @property
    def prefix(self) -> str:
        """Of the checkpoints' names."""
        return "" if self.name == "llava" else f"{self.name}-"

    @abstractmethod
    def make_model(self) -> nn.Module:
        """Random weights in fp32."""

    @abstractmethod
    def make_processor(self) -> Any:
        """The processor that is shipped."""

    @abstractmethod
    def vision(self, model: Any) -> Any:
        """The tower, first argument of `tower`."""

    @abstractmethod
    def speaking(self, model: Any) -> Iterable[nn.Parameter]:
        """All that the language stage trains: what lies behind the tower."""

    @abstractmethod
    def embed(self, model: Any) -> Tensor:
        """Word embeddings `[V,D]`, tied to the logits."""

    @staticmethod
    @abstractmethod
    def tower(vision: Any, pixels: Tensor) -> Tensor:
        """Pixels `[B,3,S,S]` -> what the connector reads, `[B,1+P,D]`."""

    @abstractmethod
    def connect(self, model: Any, features: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Visual tokens `[B,L,D]`, and where a resampler's first heads look, `[B,heads,L,P]` a layer."""

    @abstractmethod
    def arguments(self, model: Any, image: Tensor, tokens: Tensor, length: int) -> tuple[Any, ...]:
        """What `language` takes for questions `[B,K*T]` of `length` T."""

    @abstractmethod
    def inputs(self, tokens: Tensor, pixels: Tensor) -> dict[str, Tensor]:
        """What the true model takes for one question an image, `[B,T]` and `[B,3,S,S]`; its last T logits are the question's."""

    @staticmethod
    @abstractmethod
    def language(*args: Any) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Final hidden states `[B,K*T,D]`, those after the guided layers, and (last argument true) guided attention."""

    @abstractmethod
    def split(self, attention: Tensor) -> tuple[Tensor, Tensor | None]:
        """Of guided attention, the part to visual tokens `[B,heads,K*T,L]` and to <s> `[B,heads,K*T]` where it can be seen."""


class Llava(Backbone):
    """CLIP tower, projector, Llama."""

    name, side = "llava", 14
    tower, language = staticmethod(tower), staticmethod(language)

    def make_model(self) -> nn.Module:
        return make_model()

    def make_processor(self) -> Any:
        return make_processor()

    def vision(self, model: Any) -> Any:
        return getattr(model.model.vision_tower, "vision_model", model.model.vision_tower)

    def speaking(self, model: Any) -> Iterable[nn.Parameter]:
        return [*model.model.multi_modal_projector.parameters(), *model.model.language_model.parameters()]

    def embed(self, model: Any) -> Tensor:
        return model.model.language_model.embed_tokens.weight

    def connect(self, model: Any, features: Tensor) -> tuple[Tensor, list[Tensor]]:
        return model.model.multi_modal_projector(features[:, 1:]), []

    def arguments(self, model: Any, image: Tensor, tokens: Tensor, length: int) -> tuple[Any, ...]:
        text, embed, place = model.model.language_model, self.embed(model), image.device
        head = embed[torch.tensor(PREFIX, device=place)].expand(image.shape[0], -1, -1)
        prefix = torch.cat([head, image], 1)
        start = TEXT_START + image.shape[1]
        rope_p = phases(text, torch.arange(start, device=place), prefix.dtype)
        rope_t = phases(text, torch.arange(start, start + length, device=place), prefix.dtype)
        return text, prefix, F.embedding(tokens, embed), causal_mask(length, prefix), rope_p, rope_t

    def inputs(self, tokens: Tensor, pixels: Tensor) -> dict[str, Tensor]:
        return {"input_ids": behind([*PREFIX, *[IMAGE] * PATCHES], tokens), "pixel_values": pixels}

    def split(self, attention: Tensor) -> tuple[Tensor, Tensor | None]:
        return attention[..., TEXT_START:], attention[..., 0]


def behind(head: list[int], tokens: Tensor) -> Tensor:
    """Put the same head in front of every row of `[B,T]`."""
    return torch.cat([torch.tensor(head, device=tokens.device).expand(tokens.shape[0], -1), tokens], 1)
