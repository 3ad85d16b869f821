"""`PrunedLayer`: the subset store of `atp.cache` as a cache layer of transformers, and which layers it may replace."""

from __future__ import annotations

from typing import Any

from transformers.cache_utils import CacheLayerMixin, DynamicLayer, DynamicSlidingWindowLayer

from atp.cache import SubsetStore
from atp.errors import UnsupportedModel


class PrunedLayer(SubsetStore, CacheLayerMixin):  # type: ignore[no-untyped-call]  # the store comes first and wins
    """A dynamic cache layer that stores a subset of the tokens and reports the logical length."""


def check_cache(cache: Any) -> None:
    """Refuse caches that cannot store a subset, before anything runs.

    Raises:
        UnsupportedModel: a static, quantised, offloaded or otherwise unknown cache.
    """
    if cache is None:
        return
    if getattr(cache, "offloading", False):
        raise UnsupportedModel(
            "an offloaded cache cannot store a subset of the tokens; leave cache_implementation at its default (dynamic)"
        )
    for index, layer in enumerate(getattr(cache, "layers", None) or ()):
        replaceable(layer, index)
    if not hasattr(cache, "layers"):
        raise UnsupportedModel(
            f"expected a cache with layers, such as DynamicCache, got {type(cache).__name__}; pass past_key_values=None"
        )


def replaceable(layer: Any, index: int) -> None:
    """Refuse one cache layer.

    Raises:
        UnsupportedModel: it is none that a subset can live in.
    """
    if type(layer) in (PrunedLayer, DynamicLayer, DynamicSlidingWindowLayer):
        return
    raise UnsupportedModel(
        f"layer {index} of the cache is a {type(layer).__name__}, which cannot store a subset of the tokens (static, quantised "
        "and other fixed-shape caches cannot); expected a DynamicLayer: leave cache_implementation at its default (dynamic)"
    )


def layer_at(cache: Any, index: int) -> Any:
    """Return a cache's layer, made first where the cache makes them lazily."""
    while len(cache.layers) <= index:
        if cache.layer_class_to_replicate is None:
            raise UnsupportedModel(f"the cache has {len(cache.layers)} layers, the model at least {index + 1}; pass a new cache")
        cache.layers.append(cache.layer_class_to_replicate())
    return cache.layers[index]


def replace(cache: Any, index: int) -> PrunedLayer:
    """Put a `PrunedLayer` at `index`, holding what the plain layer held, and return it."""
    old = layer_at(cache, index)
    if isinstance(old, PrunedLayer):
        return old
    replaceable(old, index)
    sliding = isinstance(old, DynamicSlidingWindowLayer)
    new = PrunedLayer(sliding=sliding)
    if old.is_initialized and old.get_seq_length() > 0:
        if old.get_seq_length() != old.keys.shape[-2]:
            raise UnsupportedModel(
                f"layer {index} of the cache has a sliding window and already forgot tokens, so a new image cannot be pruned on "
                "it; start the prompt with the image, or pass a new cache"
            )
        new.adopt(old.keys, old.values)
    cache.layers[index] = new
    return new
