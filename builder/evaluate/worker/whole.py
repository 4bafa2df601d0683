"""Scores a model that fits into memory, as often as questions come up.

On a CPU a mixture of experts is multiplied by expert. The model is used up by that, and loaded again for the
next questions. Any other model is kept, and runs as mlx-lm runs it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from builder.evaluate.process import Say, Step
from builder.evaluate.worker.layerwise import by_expert_or_loaded
from builder.evaluate.worker.questions import Ask
from builder.evaluate.worker.scorable import Scorable
from builder.evaluate.worker.scoring import Reduce, score


class Whole:
    """What `load` gives. `telling`: makes what is told of progress, in a unit."""

    def __init__(
        self, load: Callable[[], Scorable], size: int, telling: Callable[[str], Step], say: Say
    ) -> None:
        self._load, self._size, self._telling, self._say = load, size, telling, say
        self._model: Any = None

    def __call__(self, asks: Sequence[Ask], reduce: Reduce) -> None:
        """As `builder.evaluate.worker.scoring.score`."""
        if self._model is None:
            told = self._telling("bytes")
            scorable = by_expert_or_loaded(self._load, asks, reduce, self._size, told, self._say)
            if scorable is None:
                return
            self._model = scorable.model
        score(self._model, asks, reduce, self._size, self._telling("questions"))
