"""What each kind of suite makes of log-probs. A part says what it asks, takes the answers, gives a result.

All parts of a target are asked together, in one pass over their sequences; what the answers leave open is
asked in another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

import mlx.core as mx

from builder.evaluate.statistics import Figure, clustered_percentile, clustered_rate, mean, rate
from builder.evaluate.worker.questions import Ask, Row, accepted, answer_asks, candidate_asks
from builder.spec.types import Suite

Reduce = Callable[[int, mx.array], None]
_LEAST = 1e-12  # a probability below what float32 can tell from the others' sum


@dataclass(frozen=True)
class Measured:
    """The figures of one suite, and for paired tests, by metric, one outcome per row.

    The mean of a metric's rows is its figure (perplexity: its logarithm).
    """

    figures: Mapping[str, Figure]
    rows: Mapping[str, tuple[float, ...]]


class Part(Protocol):
    """`open` are the asks to score next; `take` is given the log-probs of one, a row for each position."""

    @property
    def asks(self) -> Sequence[Ask]: ...
    def open(self) -> Sequence[int]: ...
    def take(self, index: int, logprobs: mx.array) -> None: ...
    def result(self) -> Measured: ...


def answer(
    parts: Collection[Part], score: Callable[[Sequence[Ask], Reduce], None], *, at_once: bool = False
) -> None:
    """Have the asks scored: until none is open or, where scoring uses the model up, all of them at once."""
    owners = [
        (part, index) for part in parts for index in (range(len(part.asks)) if at_once else part.open())
    ]
    while owners:
        score([part.asks[index] for part, index in owners], _taker(owners))
        owners = [] if at_once else [(part, index) for part in parts for index in part.open()]


def _taker(owners: Sequence[tuple[Part, int]]) -> Reduce:
    def take(number: int, logprobs: mx.array) -> None:
        part, index = owners[number]
        part.take(index, logprobs)

    return take


def part(suite: Suite, rows: Sequence[Row], tokenizer: Any, reference: Path | None) -> Part:
    """The part of a suite that is measured by scoring. Raises DataInvalid."""
    if suite.kind == "choice":
        return Choice(suite, rows, tokenizer)
    asks = answer_asks(suite, rows, tokenizer)
    if suite.kind == "fidelity":
        assert reference is not None, "the reference is made first"
        return Fidelity(asks, reference)
    return Answers(asks, suite.kind)


class Choice:
    """`accuracy`: the likeliest candidate is right. `greedy`: greedy decoding begins with a right one.

    The right candidates are asked first. They tell how likely the first token of each other one is; no
    candidate is likelier than its first token, so most of the others need not be asked.
    """

    def __init__(self, suite: Suite, rows: Sequence[Row], tokenizer: Any) -> None:
        self.labels = list(suite.candidates)
        self.right = [accepted(suite, row) for row in rows]
        made = candidate_asks(suite, rows, tokenizer)
        self.asks = [asks[label] for asks in made for label in self.labels]
        self.scores: dict[int, float] = {}
        self.most: dict[int, float] = {}  # what the score of an ask is at most
        self.first: dict[int, bool] = {}

    def open(self) -> list[int]:
        if not self.scores:
            return [index for row in range(len(self.right)) for index in self._of(row, right=True)]
        return [
            index
            for row in range(len(self.right))
            for index in self._of(row, right=False)
            if index not in self.scores and self.most.get(index, 0.0) >= self._best(row, right=True)
        ]

    def take(self, index: int, logprobs: mx.array) -> None:
        ask = self.asks[index]
        self.scores[index] = sum(_at(logprobs, ask))
        self.first[index] = _is_greedy(logprobs, ask)
        others = [
            other
            for other in self._of(index // len(self.labels), right=False)
            if self.asks[other].tokens[: self.asks[other].start] == ask.tokens[: ask.start]
        ]
        first = logprobs[0]
        for other in others:
            value: Any = first[self.asks[other].tokens[ask.start]].item()
            self.most[other] = value

    def result(self) -> Measured:
        rows = range(len(self.right))
        likeliest = [self._best(row, right=True) > self._best(row, right=False) for row in rows]
        greedy = [any(self.first[index] for index in self._of(row, right=True)) for row in rows]
        figures = {"accuracy": rate(likeliest), "greedy": rate(greedy)}
        return Measured(
            figures, {"accuracy": tuple(map(float, likeliest)), "greedy": tuple(map(float, greedy))}
        )

    def _of(self, row: int, *, right: bool) -> list[int]:
        """The asks of a row's right candidates, or of its others."""
        at = row * len(self.labels)
        return [at + i for i, label in enumerate(self.labels) if (label in self.right[row]) == right]

    def _best(self, row: int, *, right: bool) -> float:
        return max((self.scores.get(i, -math.inf) for i in self._of(row, right=right)), default=-math.inf)


@dataclass
class Answers:
    """`rate` of answers that greedy decoding would write, or the `perplexity` of the answers' tokens."""

    asks: Sequence[Ask]
    kind: str
    losses: dict[int, list[float]] = field(default_factory=dict)
    written: dict[int, bool] = field(default_factory=dict)

    def open(self) -> list[int]:
        return [index for index in range(len(self.asks)) if index not in self.losses]

    def take(self, index: int, logprobs: mx.array) -> None:
        self.losses[index] = [-value for value in _at(logprobs, self.asks[index])]
        self.written[index] = _is_greedy(logprobs, self.asks[index])

    def result(self) -> Measured:
        order = range(len(self.asks))
        if self.kind == "exact":
            written = [self.written[i] for i in order]
            return Measured({"rate": rate(written)}, {"rate": tuple(map(float, written))})
        values = [value for i in order for value in self.losses[i]]
        loss = mean(values, [i for i in order for _ in self.losses[i]])
        low, high = (None if end is None else _exp(end) for end in (loss.low, loss.high))
        figure = Figure(_exp(loss.value), low, high, loss.n, loss.clusters)
        return Measured({"perplexity": figure}, {"perplexity": shares([self.losses[i] for i in order])})


class Fidelity:
    """Distance to the reference's log-probs at the same positions.

    `kl`: the mean of KL(reference || target) over positions, on the reference's top_k tokens and one
    remainder, a lower bound that is close where the remainder is small; `kl_p99`: its 99th percentile;
    `agreement`: how often both find the same token the likeliest.
    """

    def __init__(self, asks: Sequence[Ask], reference: Path) -> None:
        self.asks = asks
        arrays: Any = mx.load(str(reference), format="safetensors")
        self.tokens, self.logs, self.rest = arrays["tokens"], arrays["logprobs"], arrays["rest"]
        sizes = (len(ask.tokens) - ask.start for ask in asks)
        self.starts = list(accumulate(sizes, initial=0))
        assert self.tokens.shape[0] == self.starts[-1], "the reference was made for other questions"
        self.kl: dict[int, Any] = {}  # a list of floats for each ask
        self.same: dict[int, Any] = {}

    def open(self) -> list[int]:
        return [index for index in range(len(self.asks)) if index not in self.kl]

    def take(self, index: int, logprobs: mx.array) -> None:
        at = slice(self.starts[index], self.starts[index + 1])
        tokens, logs, rest = self.tokens[at].astype(mx.int32), self.logs[at], self.rest[at]
        ours = mx.take_along_axis(logprobs, tokens, axis=-1)
        ours_rest = mx.log(mx.maximum(1 - mx.exp(ours).sum(-1), _LEAST))
        kl = (mx.exp(logs) * (logs - ours)).sum(-1) + mx.exp(rest) * (rest - ours_rest)
        self.kl[index] = mx.maximum(kl, 0).tolist()
        self.same[index] = (mx.argmax(logprobs, -1) == tokens[:, 0]).tolist()

    def result(self) -> Measured:
        order = range(len(self.asks))
        groups = [i for i in order for _ in self.kl[i]]
        values = [value for i in order for value in self.kl[i]]
        figures = {
            "kl": mean(values, groups),
            "kl_p99": clustered_percentile(values, groups, 0.99),
            "agreement": clustered_rate([value for i in order for value in self.same[i]], groups),
        }
        rows = {
            "kl": shares([self.kl[i] for i in order]),
            "agreement": shares([self.same[i] for i in order]),
        }
        return Measured(figures, rows)


class Reference:
    """The reference's own log-probs: the top_k of each position, the likeliest first, and the remainder."""

    def __init__(self, asks: Sequence[Ask], top_k: int) -> None:
        self.asks = asks
        self.top_k = top_k
        self.kept: dict[int, tuple[mx.array, mx.array, mx.array]] = {}

    def open(self) -> list[int]:
        return [index for index in range(len(self.asks)) if index not in self.kept]

    def take(self, index: int, logprobs: mx.array) -> None:
        k = min(self.top_k, logprobs.shape[-1] - 1)
        tokens = mx.argpartition(-logprobs, kth=k, axis=-1)[:, :k]
        logs = mx.take_along_axis(logprobs, tokens, axis=-1)
        order = mx.argsort(-logs, axis=-1)
        tokens, logs = mx.take_along_axis(tokens, order, -1), mx.take_along_axis(logs, order, -1)
        rest = mx.log(mx.maximum(1 - mx.exp(logs).sum(-1), _LEAST))
        mx.eval(tokens, logs, rest)
        self.kept[index] = (tokens, logs, rest)

    def save(self, file: Path) -> None:
        columns = zip(*(self.kept[i] for i in range(len(self.asks))), strict=True)
        names = ("tokens", "logprobs", "rest")
        arrays = {name: mx.concatenate(list(column)) for name, column in zip(names, columns, strict=True)}
        mx.save_safetensors(str(file), arrays)

    def result(self) -> Measured:
        return Measured({}, {})


def shares(rows: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """What each row of values adds to the mean of all values, times the rows: their mean is that mean."""
    scale = len(rows) / max(1, sum(map(len, rows)))
    return tuple(scale * math.fsum(row) for row in rows)


def _at(logprobs: mx.array, ask: Ask) -> list[float]:
    """The log-prob of each token of the answer."""
    tokens = mx.array(ask.tokens[ask.start :])[:, None]
    values: Any = mx.take_along_axis(logprobs, tokens, axis=-1)[:, 0].tolist()
    return list(values)


def _is_greedy(logprobs: mx.array, ask: Ask) -> bool:
    return mx.argmax(logprobs, axis=-1).tolist() == list(ask.tokens[ask.start :])


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf
