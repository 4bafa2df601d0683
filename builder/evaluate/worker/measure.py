"""Turns log-probs into the figures of each kind of suite.

A part says what it asks, takes the answers, and gives a result. All parts of a target are asked together, in
one pass over their sequences. What the answers leave open is asked in another pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

import mlx.core as mx

from builder.evaluate.results import Sample
from builder.evaluate.statistics import Figure, clustered_percentile, clustered_rate, mean, rate
from builder.evaluate.worker.parts import asks_of_part, rows_of_part
from builder.evaluate.worker.questions import Ask, accepted, candidate_asks
from builder.spec.rows import Row
from builder.spec.types import Suite

Reduce = Callable[[int, mx.array], None]
_LEAST = 1e-12  # a probability below what float32 can tell from the others' sum


@dataclass(frozen=True)
class Measured:
    """The figures of one suite, and for each metric one outcome per row, for paired tests.

    The mean of the rows of a metric is its figure. For perplexity, the mean is the logarithm of the figure.
    A suite that generates gives `samples`: some of its answers, for a person to read. `asked`: where only a
    part of the questions was asked, which of all questions the rows are.
    """

    figures: Mapping[str, Figure]
    rows: Mapping[str, tuple[float, ...]]
    samples: tuple[Sample, ...] = ()
    asked: tuple[int, ...] = ()


class Part(Protocol):
    """One suite that is being measured. `open` gives the indices of the asks to score next.

    `take` gets the log-probs of one ask, float32 [positions, vocabulary].
    """

    @property
    def asks(self) -> Sequence[Ask]: ...
    def open(self) -> Sequence[int]: ...
    def take(self, index: int, logprobs: mx.array) -> None: ...
    def result(self) -> Measured: ...


def answer(
    parts: Collection[Part], score: Callable[[Sequence[Ask], Reduce], None], *, at_once: bool = False
) -> None:
    """Scores the asks of all parts until none is open. With `at_once`, scores all asks in a single pass.

    Scoring by layer needs `at_once`, because the model cannot be used a second time.
    """
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
    """The part for a suite that is measured by scoring. Fidelity needs `reference`. Raises DataInvalid."""
    if suite.kind == "choice":
        return Choice(suite, rows, tokenizer)
    asks, chosen = asks_of_part(suite, rows, tokenizer)
    if suite.kind == "fidelity":
        assert reference is not None, "the reference is made first"
        return Fidelity(asks, reference, chosen)
    return Answers([asks[index] for index in chosen], suite.kind, numbers(chosen, asks))


def numbers(chosen: Sequence[int], every: Sequence[object]) -> tuple[int, ...]:
    """The numbers of the chosen questions, or nothing where every question is chosen."""
    return () if len(chosen) == len(every) else tuple(chosen)


class Choice:
    """Measures kind choice.

    `accuracy` is how often the likeliest candidate is right. `greedy` is how often greedy decoding begins
    with a right candidate. The right candidates are asked first. Their answers tell how likely the first
    token of each other candidate is. No candidate is likelier than its first token, so most others need not
    be asked.
    """

    def __init__(self, suite: Suite, rows: Sequence[Row], tokenizer: Any) -> None:
        self.labels = list(suite.candidates)
        chosen = rows_of_part(suite, rows)
        self.right = [accepted(suite, rows[index]) for index in chosen]
        self.asked = numbers(chosen, rows)
        every = candidate_asks(suite, rows, tokenizer)
        made = [every[index] for index in chosen]
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
        by_row = {"accuracy": tuple(map(float, likeliest)), "greedy": tuple(map(float, greedy))}
        return Measured(figures, by_row, asked=self.asked)

    def _of(self, row: int, *, right: bool) -> list[int]:
        """The asks of the right candidates of a row, or of its other candidates."""
        at = row * len(self.labels)
        return [at + i for i, label in enumerate(self.labels) if (label in self.right[row]) == right]

    def _best(self, row: int, *, right: bool) -> float:
        return max((self.scores.get(i, -math.inf) for i in self._of(row, right=right)), default=-math.inf)


@dataclass
class Answers:
    """Measures kind exact (`rate`: share of answers that greedy decoding writes) or kind `perplexity`."""

    asks: Sequence[Ask]
    kind: str
    asked: tuple[int, ...] = ()
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
            return Measured({"rate": rate(written)}, {"rate": tuple(map(float, written))}, asked=self.asked)
        values = [value for i in order for value in self.losses[i]]
        loss = mean(values, [i for i in order for _ in self.losses[i]])
        low, high = (None if end is None else _exp(end) for end in (loss.low, loss.high))
        figure = Figure(_exp(loss.value), low, high, loss.n, loss.clusters)
        by_row = {"perplexity": shares([self.losses[i] for i in order])}
        return Measured({"perplexity": figure}, by_row, asked=self.asked)


class Fidelity:
    """Measures kind fidelity: the distance to the log-probs of the reference at the same positions.

    `kl` is the mean of KL(reference || target) over positions, in nats, on the reference's top_k tokens and
    one remainder. That is a lower bound, which is close where the remainder is small. `kl_p99` is the 99th
    percentile. `agreement` is how often both have the same likeliest token.
    """

    def __init__(self, asks: Sequence[Ask], reference: Path, chosen: Sequence[int] | None = None) -> None:
        """The reference is for all `asks`. Those in `chosen` are asked."""
        arrays: Any = mx.load(str(reference), format="safetensors")
        self.tokens, self.logs, self.rest = arrays["tokens"], arrays["logprobs"], arrays["rest"]
        sizes = (len(ask.tokens) - ask.start for ask in asks)
        starts = list(accumulate(sizes, initial=0))
        assert self.tokens.shape[0] == starts[-1], "the reference was made for other questions"
        chosen = range(len(asks)) if chosen is None else chosen
        self.asks = [asks[index] for index in chosen]
        self.asked = numbers(chosen, asks)
        self.places = [slice(starts[index], starts[index + 1]) for index in chosen]
        self.kl: dict[int, Any] = {}  # a list of floats for each ask
        self.same: dict[int, Any] = {}

    def open(self) -> list[int]:
        return [index for index in range(len(self.asks)) if index not in self.kl]

    def take(self, index: int, logprobs: mx.array) -> None:
        at = self.places[index]
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
        return Measured(figures, rows, asked=self.asked)


class Reference:
    """Keeps the reference's log-probs: the top_k of each position, likeliest first, and the remainder."""

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
        """Writes a safetensors file with tokens and logprobs [positions, top_k], and rest [positions]."""
        columns = zip(*(self.kept[i] for i in range(len(self.asks))), strict=True)
        names = ("tokens", "logprobs", "rest")
        arrays = {name: mx.concatenate(list(column)) for name, column in zip(names, columns, strict=True)}
        mx.save_safetensors(str(file), arrays)

    def result(self) -> Measured:
        return Measured({}, {})


def shares(rows: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """One number for each row of values, so that the mean of these numbers is the mean of all values."""
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
