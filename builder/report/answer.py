"""The answer of a model's report in one sentence: which variant is the smallest that passes."""

from __future__ import annotations

from dataclasses import dataclass

from builder.console.states import limit_text
from builder.console.words import count, listed, size_text
from builder.evaluate.results import side
from builder.report.cells import heading, number_text
from builder.report.facts import ModelReport, Production, Row
from builder.spec.types import Metric


@dataclass(frozen=True)
class Answer:
    """`headline` is `verdict` and `rest` as one sentence. `chosen` is the target that the headline names.

    `notes` are sentences that limit the answer.
    """

    verdict: str
    rest: str
    chosen: str | None
    notes: tuple[str, ...]

    @property
    def headline(self) -> str:
        return f"{self.verdict}: {self.rest}" if self.rest else self.verdict


def answer(model: ModelReport) -> Answer:
    """The answer from what is measured. Says what is missing where nothing can be chosen."""
    chosen = chosen_row(model)
    if chosen is not None:
        size = ", ".join(filter(None, [size_text(chosen.size), _smaller(model, chosen)]))
        found = "smallest measured variant" if _unmeasured(model, chosen) else "smallest"
        verdict = f"{chosen.variant} is the {found} that passes"
        return Answer(verdict, _joined(size, production_text(model)), chosen.target, _limits(model, chosen))
    verdict, why = _no_choice(model)
    return Answer(verdict, _joined(why, production_text(model)), None, ())


def _no_choice(model: ModelReport) -> tuple[str, str]:
    """Why no variant is chosen, in short and with what to know about it."""
    if not model.rows:
        return "Nothing is built yet", f"build with `doit model:{model.name}`"
    if not model.required:
        sizes = [size_text(row.size) for row in (model.rows[-1], model.rows[0])]
        number = count(len(model.rows), "variant")
        return "Nothing is required", f"{number}, {' to '.join(dict.fromkeys(sizes))}"
    unmeasured = [row.target for row in model.rows if row.verdict == "not measured"]
    if unmeasured:
        return "No variant is known to pass", f"measure with `doit eval:{unmeasured[0]}`"
    largest = model.rows[0]
    return "No variant passes", f"{largest.variant}, the largest, misses {_missed(model, largest)}"


def _joined(*clauses: str) -> str:
    return "; ".join(filter(None, clauses))


def chosen_row(model: ModelReport) -> Row | None:
    """The smallest target that passes. None if no target passes."""
    passing = [row for row in model.rows if row.verdict == "passes"]
    return min(passing, key=lambda row: (row.size, row.target), default=None)


def misses(row: Row, metric: Metric) -> bool:
    """Whether a target misses the requirement on a metric."""
    return any(miss.startswith(f"{metric} ") for miss in row.misses)


def required_text(model: ModelReport) -> str:
    """The requirements in words: "routing greedy at least 95 % and KL at most 0.1". Empty without any."""
    said = [
        f"{heading(model, metric)} {limit_text(operator, number_text(model, metric, value))}"
        for metric, (operator, value) in model.required.items()
    ]
    return listed(said, "and")


def doubts_text(model: ModelReport, row: Row) -> str:
    """How low or high the true figures of a target may be. Empty if it passes with certainty."""
    ends = [
        f"the true {heading(model, metric)} may be as {side(model.required[metric][0])} as "
        f"{number_text(model, metric, end)}"
        for metric, end in row.doubts.items()
    ]
    return listed(ends, "and")


def production_text(model: ModelReport) -> str:
    """What production is, as a clause. Empty for a model that is not released."""
    made = model.production
    if made is None:
        return ""
    if made.target is None:
        return "production is not released yet"
    return f"production is {_shown(model, made, made.target)}"


def _shown(model: ModelReport, made: Production, target: str) -> str:
    row = next((row for row in model.rows if row.target == target), None)
    name = target.removeprefix(f"{model.name}_")
    if made.is_current:
        return f"{name}, which misses" if row and row.verdict == "misses" else name
    return f"an older build of {name}" if target.startswith(f"{model.name}_") else f"still {target}"


def _smaller(model: ModelReport, chosen: Row) -> str:
    """How much smaller the chosen target is than the unquantized one, else than the largest."""
    plain = [row for row in model.rows if row.bits is not None and row.bits >= 16]
    against = max(plain or model.rows, key=lambda row: row.size)
    ratio = against.size / max(1, chosen.size)
    return f"{ratio:.1f} times smaller than {against.variant}" if ratio >= 1.05 else ""


def _unmeasured(model: ModelReport, chosen: Row) -> list[str]:
    """The variants that may be smaller than the chosen one and pass, but are not measured."""
    names = [name.removeprefix(f"{model.name}_") for name in model.absent]
    return names + [
        row.variant for row in model.rows if row.verdict == "not measured" and row.size < chosen.size
    ]


def _limits(model: ModelReport, chosen: Row) -> tuple[str, ...]:
    said = []
    if doubts := doubts_text(model, chosen):
        said.append(f"{chosen.variant} passes, but not with certainty: {doubts}.")
    larger = [row.variant for row in model.rows if row.verdict == "misses" and row.size > chosen.size]
    if larger:
        said.append(f"Larger, but misses: {listed(larger)}.")
    if open_ := _unmeasured(model, chosen):
        said.append(f"Not measured: {listed(open_)}.")
    return tuple(said)


def _missed(model: ModelReport, row: Row) -> str:
    """The requirements that a target misses, with what was measured."""
    said = []
    for metric, (operator, value) in model.required.items():
        figure = row.figures.get(metric)
        if figure is not None and misses(row, metric):
            limit = limit_text(operator, number_text(model, metric, value))
            name = heading(model, metric)
            said.append(f"{name} ({number_text(model, metric, figure.value)}, required {limit})")
    return listed(said, "and")
