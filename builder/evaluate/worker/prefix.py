"""Computes once what all sequences begin with (a system prompt), and shares its keys and values.

This works only where every layer of the model keeps a plain cache of keys and values. With other caches
(windows, states), sequences are computed whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from builder.evaluate.worker.questions import Ask
from builder.spec.rows import shared

_LEAST = 8  # tokens. Sharing a shorter beginning does not pay


def shared_beginning(model: Any, asks: Sequence[Ask]) -> tuple[int, ...]:
    """The tokens with which all asks begin, before any scored position. Empty when sharing does not pay."""
    from mlx_lm.models.cache import KVCache, make_prompt_cache

    if len(asks) < 2 or not hasattr(model, "layers"):
        return ()
    # The token before the first scored token is computed with its sequence, because its output is scored.
    length = min(min(ask.start - 1, shared(asks[0].tokens, ask.tokens)) for ask in asks)
    plain = length >= _LEAST and all(type(cache) is KVCache for cache in make_prompt_cache(model))
    return asks[0].tokens[:length] if plain else ()


class Beginning:
    """The keys and values of some tokens, for batches of any number of rows. They are lazy."""

    def __init__(self, model: Any, tokens: tuple[int, ...]) -> None:
        from mlx_lm.models.cache import make_prompt_cache

        self.tokens = tokens
        self._caches = make_prompt_cache(model)
        model(mx.array([tokens]), cache=self._caches)

    @property
    def arrays(self) -> list[mx.array]:
        """The keys and values of all layers."""
        pairs = (cache.keys_and_values() for cache in self._caches if not cache.empty())
        return [array for pair in pairs for array in pair]

    def caches(self, rows: int) -> list[Any]:
        """A cache for each layer, as if `rows` sequences had begun with the tokens."""
        from mlx_lm.models.cache import KVCache

        made = []
        for cache in self._caches:
            copy = KVCache()
            copy.offset = len(self.tokens)
            if not cache.empty():  # a layer without attention leaves its cache empty
                copy.keys, copy.values = (mx.repeat(each, rows, axis=0) for each in cache.keys_and_values())
            made.append(copy)
        return made
