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
    """The keys and values of some tokens, for batches of any number of rows. They are lazy.

    `run` computes them. The caches that `caches` gives look for them when a layer asks, not before.
    """

    def __init__(self, model: Any, tokens: tuple[int, ...]) -> None:
        from mlx_lm.models.cache import make_prompt_cache

        self.tokens = tokens
        self._model = model
        self._caches = make_prompt_cache(model)

    def run(self) -> None:
        self._model(mx.array([self.tokens]), cache=self._caches)

    @property
    def arrays(self) -> list[mx.array]:
        """The keys and values of all layers that have run."""
        pairs = (cache.keys_and_values() for cache in self._caches if not cache.empty())
        return [array for pair in pairs for array in pair]

    def caches(self, rows: int) -> list[Any]:
        """A cache for each layer, as if `rows` sequences had begun with the tokens."""
        return [_continued(cache, rows, len(self.tokens)) for cache in self._caches]


def _continued(begun: Any, rows: int, offset: int) -> Any:
    """A cache that goes on after `begun`, which may be filled later than this is called."""
    from mlx_lm.models.cache import KVCache

    class Continued(KVCache):  # type: ignore[misc]
        """Its keys and values are those of `begun`, once for each row, until something else is set."""

        def _begin(self) -> None:
            if "_own" not in self.__dict__:  # a layer without attention leaves its cache empty
                both = (None, None) if begun.empty() else begun.keys_and_values()
                self._own = [each if each is None else mx.repeat(each, rows, axis=0) for each in both]

        @property
        def keys(self) -> Any:
            self._begin()
            return self._own[0]

        @keys.setter
        def keys(self, value: Any) -> None:
            self._begin()
            self._own[0] = value

        @property
        def values(self) -> Any:
            self._begin()
            return self._own[1]

        @values.setter
        def values(self, value: Any) -> None:
            self._begin()
            self._own[1] = value

    made = Continued.__new__(Continued)
    made.offset = offset
    return made
