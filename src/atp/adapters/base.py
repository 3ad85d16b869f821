"""What the engine asks of a model family. Implementations are the only code that knows names of transformers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from atp.adapters.calls import Args as Args
from atp.adapters.calls import Images as Images
from atp.adapters.calls import Kwargs as Kwargs
from atp.adapters.calls import LayerCall as LayerCall
from atp.adapters.calls import Listener as Listener
from atp.adapters.calls import Prompt as Prompt
from atp.adapters.calls import Source as Source
from atp.adapters.calls import additive as additive
from atp.adapters.calls import named as named
from atp.adapters.stacks import CrossView as CrossView
from atp.adapters.stacks import OwnView as OwnView
from atp.adapters.stacks import StackView as StackView
from atp.budget.shape import ModelShape
from atp.cache import SubsetStore
from atp.errors import UnsupportedModel
from atp.subset import Subset


class Adapter(ABC):
    """One model, seen as stacks.

    Attributes:
        model_types: values of `config.model_type` it serves.
        model: the whole model.
        shape: its sizes; those of a nominal image where images differ in size.
        vision, language: its stacks.
        grid: (height, width) of a nominal image, in tokens.
        stacks: those that can be pruned.
        towers, texts: model types of the tower and of the language model that were tried; () = any.
        limits: what cannot be pruned, or not as elsewhere, in a few words each.
        checks: whether the engine compares the first call with the unhooked model, because nobody has tried this family.
        resizable: whether the tower takes smaller images (`resize`).
        any_size: whether images are encoded at whatever size they come.
        graphs: whether a call can be traced into one graph (tried); elsewhere sizes of images are read on the host.
        tiles: images of the tower that a typical image is cut into; what a plan is solved for unless told otherwise.
        connects: what patches are to the connector. `rows`: each passes alone, so dead ones stay out; `grid`: it wants all;
            `keys`: they are looked at by queries of its own, so dead ones are no keys and visual tokens stand for no patch.
        reader: the decoder that looks at the language model's output as keys, where that is an encoder; else None.
        own: the language model's own layers, where `language` are cross-attention layers: text leaves there; else None.
        top, base, tower, connector, text: modules whose calls the engine watches: the model with its head, the model that
            joins images and text, the vision tower, the connector, the language model without head.
    """

    model_types: ClassVar[tuple[str, ...]] = ()
    stacks: ClassVar[tuple[str, ...]] = ("vision", "language")
    towers: ClassVar[tuple[str, ...]] = ()
    texts: ClassVar[tuple[str, ...]] = ()
    limits: ClassVar[tuple[str, ...]] = ()
    checks: ClassVar[bool] = False
    resizable: ClassVar[bool] = False
    any_size: ClassVar[bool] = False
    tiles: ClassVar[int] = 1
    graphs: ClassVar[bool] = False
    connects: ClassVar[str] = "grid"

    model: nn.Module
    shape: ModelShape
    vision: StackView
    language: StackView
    own: OwnView | None = None
    grid: tuple[int, int]
    top: nn.Module
    base: nn.Module
    tower: nn.Module
    connector: nn.Module
    text: nn.Module
    reader: nn.Module | None = None

    @property
    def views(self) -> tuple[StackView, ...]:
        """The stacks that can be pruned."""
        return tuple(getattr(self, stack) for stack in self.stacks)

    def check(self) -> None:
        """Refuse a model that was made unfit since it was adapted; called before each call of the base model.

        Raises:
            UnsupportedModel: attention whose masks cannot be cut; layers whose hooks run again in the backward pass.
        """
        for layer in (view.layers[0] for view in self.views) if self.base.training else ():
            again = getattr(layer, "gradient_checkpointing", False) and type(layer).__call__ is not nn.Module.__call__
            if again:  # before transformers 5.23
                raise UnsupportedModel(
                    "gradient checkpointing runs the hooks of a layer again in the backward pass, with other tokens; upgrade: "
                    "pip install 'transformers>=5.23', or call model.gradient_checkpointing_disable()"
                )

    @abstractmethod
    def prompt(self, args: Args, kwargs: Kwargs, candidates: int) -> Prompt | None:
        """Read the base model's call; None where it carries no images.

        Raises:
            UnsupportedModel: the call cannot be pruned exactly (cache kind, chunked prefill, embeddings instead of ids).
        """

    @abstractmethod
    def candidates(self, args: Args, kwargs: Kwargs) -> int:
        """Read from the top model's call how many last tokens are guesses of assisted decoding."""

    @abstractmethod
    def starts(self, kwargs: Kwargs) -> bool:
        """Whether the base model's call begins a sequence: nothing is cached."""

    @abstractmethod
    def images(self, args: Args, kwargs: Kwargs) -> Images:
        """Read the tower's call."""

    def pack(self, values: Tensor, counts: Sequence[int], extra: Any) -> list[Tensor]:
        """Lay what is known of the tower's tokens out as the visual tokens of the prompt.

        Args:
            values: `[P, N, C]`, C facts of each token of each image of the tower.
            counts: tokens of each image.
            extra: of the prompt.

        Returns:
            For each image of the prompts `[F, C]`; NaN where a visual token stands for none of the tower's, a weighted mean where
            it mixes several: it is alive where the live ones have half of the weight.
        """
        return [values[index, :count] for index, count in enumerate(counts)]

    def watched(self) -> tuple[tuple[nn.Module, str], ...]:
        """Return methods (of a module, by name) whose calls `layout` reads, where no hook sees what `pack` needs."""
        return ()

    def hear(self, name: str, args: Args, kwargs: Kwargs) -> None:  # noqa: B027  # most need not
        """Note a call of a watched method before it runs."""

    def layout(self, name: str, args: Args, kwargs: Kwargs) -> Any:
        """Read a call of a watched method: what `pack` needs, in the place of the prompt's `extra`; None = nothing new."""
        raise NotImplementedError(f"{type(self).__name__} watches no method")

    def mended(self, name: str, made: Any, alive: Tensor, layout: Any) -> Any:
        """Return what a watched method made, where features mix dead patches (zero there) into live ones.

        Args:
            name: of the method.
            made: by it.
            alive: `[P, N]` bool, tokens of each image of the tower.
            layout: of the call.
        """
        return made

    def narrow(self, args: Args, kwargs: Kwargs, subset: Subset, weight: Tensor | None) -> tuple[Args, Kwargs]:
        """Return the arguments of a connector that `connects` by keys on the live patches only.

        Args:
            args, kwargs: what the model calls it with.
            subset: the live patches.
            weight: `[P, K]`, logarithm of how many patches each of them stands for, where the connector shall heed that and can.
        """
        raise NotImplementedError(f"the connector of {type(self).__name__} does not connect by keys")

    def keys_of(self, output: Any) -> Tensor:
        """Return the rows `[B, T, D]` of the language model's output."""
        raise NotImplementedError(f"{type(self).__name__} has no reader")

    def read_keys(self, kwargs: Kwargs) -> tuple[Tensor | None, tuple[int, int]]:
        """Return the output of the language model `[B, T, D]` that the reader is called with, and its own batch and length."""
        raise NotImplementedError(f"{type(self).__name__} has no reader")

    def cut_keys(self, kwargs: Kwargs, subset: Subset) -> Kwargs:
        """Return the reader's arguments with the live rows of the language model's output only."""
        raise NotImplementedError(f"{type(self).__name__} has no reader")

    def asked(self, args: Args, kwargs: Kwargs) -> float | None:
        """Return the connector's FLOPs for an image whatever is alive, where its call decides them; None = those of `shape`."""
        return None

    def recurring(self) -> list[nn.Module]:
        """Return projections that every decoded token asks for again with the same input, and that may be remembered."""
        return []

    def listeners(self) -> list[tuple[nn.Module, Listener]]:
        """Return modules whose calls the adapter itself wants to see, and what sees them."""
        return []

    @abstractmethod
    def cache_layer(self, cache: Any, layer: int) -> SubsetStore | None:
        """Return the cache's layer where it stores a subset, else None."""

    @abstractmethod
    def make_cache_layer(self, cache: Any, layer: int) -> SubsetStore:
        """Put a layer that can store a subset in the place of the cache's plain one, with what it holds, and return it.

        Raises:
            UnsupportedModel: a kind of cache layer that cannot.
        """

    @abstractmethod
    def stored_keys(self, cache: Any, layer: int) -> Tensor | None:
        """Return the keys `[B, H_kv, C, d]` that a layer has stored, None where it has none."""

    def extent(self, args: Args, kwargs: Kwargs) -> tuple[int, int]:
        """Return batch and length of the language model's call, where cross-attention layers look at images."""
        raise NotImplementedError(f"{type(self).__name__} has no cross-attention layers")

    def cache(self, kwargs: Kwargs, output: Any = None) -> Any:
        """Return the cache that the language model was called with, or made; None where there is none."""
        found = kwargs.get("past_key_values")
        return getattr(output, "past_key_values", None) if found is None else found

    def marks(self) -> frozenset[int]:
        """Return special ids that `template_ids` of no processor leaves out, though text must not lose them."""
        return frozenset()

    @abstractmethod
    def tag(self, output: Any, value: object) -> None:
        """Attach a value to the tower's output, which travels with the features made from it."""

    @abstractmethod
    def tagged(self, features: Any) -> tuple[Any, list[int]]:
        """Return the value attached to the features' carrier, None where there is none, and each image's visual tokens."""

    @abstractmethod
    def map_states(self, output: Any, change: Callable[[Tensor], Tensor]) -> Any:
        """Return a stack's output with `change` applied to every hidden state `[B, T, D]` in it."""

    def resized(self, args: Args, kwargs: Kwargs, change: Callable[[Tensor], Tensor]) -> tuple[Args, Kwargs]:
        """Return the tower's arguments with `change` applied to the pixels, and position embeddings interpolated."""
        pixels = change(named(kwargs, args, "pixel_values", 0))
        rest = {name: value for name, value in kwargs.items() if name != "pixel_values"}
        return (pixels, *args[1:]), dict(rest, interpolate_pos_encoding=True)

    @abstractmethod
    def template_ids(self, processor: Any) -> frozenset[int]:
        """Return ids that ask no question: special tokens and the chat template rendered with an empty question.

        Without a processor (None), the special ids that the model's own configuration names.
        """
