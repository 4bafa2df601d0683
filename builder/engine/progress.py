"""What a learned quantizer says while it runs: a stand-in for tqdm in its process, and its lines parsed here.

The methods of mlx-lm count batches and layers with tqdm, and give it their losses. The stand-in writes each
of these as one line of JSON to stderr, after a mark that sets it apart from all else that is written there.
"""

from __future__ import annotations

import json
import math
import re
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

MARK = "modelkiln progress "
_EVERY_S = 0.25
_LOSS = re.compile(r"loss(?: reduction)?[=:]\s*([-+0-9.e]+|nan|inf)", re.IGNORECASE)


@dataclass(frozen=True)
class Step:
    """`done` of `total` steps of one part of the work. `loss` is the last one that was said, or None."""

    part: str
    done: int
    total: int
    loss: float | None = None


def parsed(line: str) -> Step | None:
    """The step that a line says. None for any other line."""
    if not line.startswith(MARK):
        return None
    try:
        return Step(**json.loads(line.removeprefix(MARK)))
    except (ValueError, TypeError):
        return None


class Told:
    """Takes the place of tqdm in a module of mlx_lm.quant."""

    loss: float | None = None  # of the last line that said one

    def __init__(
        self, iterable: Iterable[Any], total: int | None = None, desc: str = "", **_: object
    ) -> None:
        self._iterable, self._part = iterable, desc
        self._total = total if total is not None else len(iterable)  # type: ignore[arg-type]
        self._last = 0.0

    def __iter__(self) -> Iterator[Any]:
        self._tell(0)
        for done, each in enumerate(self._iterable, start=1):
            yield each
            self._tell(done)

    def set_description(self, desc: str = "", **_: object) -> None:
        """mlx-lm writes the loss of a training step there."""
        self.hear(desc)

    @classmethod
    def write(cls, text: str, **_: object) -> None:
        """mlx-lm writes other losses there."""
        cls.hear(text)

    @classmethod
    def hear(cls, text: str) -> None:
        """Remembers the loss in a text, if it says one."""
        if found := _LOSS.search(text):
            value = float(found[1])
            Told.loss = value if math.isfinite(value) else None

    def _tell(self, done: int) -> None:
        now, total = time.monotonic(), max(self._total, done)
        if 0 < done < total and now - self._last < _EVERY_S:
            return
        self._last = now
        step = Step(self._part or ("training" if Told.loss is not None else "layers"), done, total, Told.loss)
        sys.stderr.write(f"{MARK}{json.dumps(asdict(step))}\n")
        sys.stderr.flush()
