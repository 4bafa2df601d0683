"""What all sequences begin with (a system prompt) is computed once, and its keys and values are shared.

Only where every layer of the model keeps a plain cache of keys and values: others (windows, states) are not
simply the cache of the beginning, and their sequences are computed whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from builder.evaluate.worker.questions import Ask, shared

_LEAST = 8  # tokens; a shorter beginning is not worth its bookkeeping


def shared_beginning(model: Any, asks: Sequence[Ask]) -> tuple[int, ...]:
    """The tokens before the first scored position of any ask that all asks share; () when they do not pay."""
    from mlx_lm.models.cache import KVCache, make_prompt_cache

    if len(asks) < 2 or not hasattr(model, "layers"):
        return ()
    # the token before the first scored one is computed with its sequence: its output is what is scored
    length = min(min(ask.start - 1, shared(asks[0].tokens, ask.tokens)) for ask in asks)
    plain = length >= _LEAST and all(type(cache) is KVCache for cache in make_prompt_cache(model))
    return asks[0].tokens[:length] if plain else ()


class Beginning:
    """The keys and values of some tokens, for batches of any number of rows; not computed yet."""

    def __init__(self, model: Any, tokens: tuple[int, ...]) -> None:
        from mlx_lm.models.cache import make_prompt_cache

        self.tokens = tokens
        self._caches = make_prompt_cache(model)
        model(mx.array([tokens]), cache=self._caches)

    @property
    def arrays(self) -> list[mx.array]:
        pairs = (cache.keys_and_values() for cache in self._caches if not cache.empty())
        return [array for pair in pairs for array in pair]

    def caches(self, rows: int) -> list[Any]:
        """A cache for each layer, as if `rows` sequences had begun with the tokens."""
        from mlx_lm.models.cache import KVCache

        made = []
        for cache in self._caches:
            copy = KVCache()
            copy.offset = len(self.tokens)
            if not cache.empty():  # a layer without attention leaves it so
                copy.keys, copy.values = (mx.repeat(each, rows, axis=0) for each in cache.keys_and_values())
            made.append(copy)
        return made
