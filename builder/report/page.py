"""Shows a Report as one self-contained HTML page and as Markdown, with equal tables and sentences."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

from markupsafe import Markup

from builder.console.markdown import table as table_lines
from builder.console.states import MARKS
from builder.report import notes, samples, seeds, tables
from builder.report.answer import Answer, answer
from builder.report.drawing import DARK, LIGHT, Plot
from builder.report.facts import ModelReport, Report
from builder.report.samples import Question
from builder.report.tables import Table
from builder.report.training_plot import CURVES

NO_PLOTS = "There are no plots: `pip install matplotlib` adds them."
_CLASSES = {MARKS["passes"]: "good", MARKS["misses"]: "bad"}


@dataclass(frozen=True)
class Section:
    """What the page says about one model. `key` and `first` are visible, everything after them is folded."""

    facts: ModelReport
    about: str
    answer: Answer
    limits: tuple[str, ...]
    key: Table
    first: tuple[str, ...]
    tables: tuple[Table, ...]
    more: tuple[str, ...]
    questions: tuple[Question, ...]
    plots: tuple[Plot, ...]

    @property
    def large(self) -> tuple[Plot, ...]:
        """The plot that shows the answer, if there is one. The frontier is it where the answer is a KL."""
        return self._wide[:1]

    @property
    def second(self) -> tuple[Plot, ...]:
        """The frontier, if another plot shows the answer."""
        return self._wide[1:]

    @property
    def curves(self) -> tuple[Plot, ...]:
        """The curves of training, if the adapter was trained here."""
        return tuple(plot for plot in self.plots if plot.name == CURVES)

    @property
    def small(self) -> tuple[Plot, ...]:
        return tuple(plot for plot in self.plots if plot not in (*self._wide, *self.curves))

    @property
    def _wide(self) -> tuple[Plot, ...]:
        return tuple(plot for plot in self.plots if plot.narrow and plot.name != CURVES)


def section(model: ModelReport, plots: Sequence[Plot]) -> Section:
    """The section of one model, with its answer, tables, notes and plots."""
    folded = (
        tables.beside_line(model),
        tables.every(model),
        tables.whose_loss(model),
        tables.comparisons(model),
        tables.provenance(model),
    )
    said = answer(model)
    worn = f"with the adapter {model.adapter}" if model.adapter else "without an adapter"
    if (made := model.training) is not None:
        worn += f" (trained for {made.steps} steps, step {made.kept} kept)"
    return Section(
        facts=model,
        limits=(*notes.required(model), *said.notes),
        about=f"The base {model.base} {worn}; {_count(len(model.rows))} built.",
        answer=said,
        key=tables.key(model),
        first=tuple(notes.first(model)),
        tables=tuple(table for table in folded if table),
        more=tuple(notes.more(model)),
        questions=tuple(samples.questions(model)),
        plots=tuple(plots),
    )


def html(report: Report, sections: Sequence[Section], hints: Sequence[str] = ()) -> str:
    """The report as one HTML page that loads nothing from elsewhere."""
    from jinja2 import Environment

    source = resources.files("builder.report").joinpath("page.html.j2").read_text(encoding="utf-8")
    environment = Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    template = environment.from_string(source)
    return template.render(
        report=report,
        title=_title(sections),
        models=sections,
        seeds=seeds.sections(report.models),
        range=seeds.RANGE,
        hints=hints,
        value=_value,
        interval=_interval,
        look=_look,
        how=samples.how,
        coded=_coded,
        light=LIGHT,
        dark=DARK,
    )


def _value(cell: str) -> str:
    """A figure without its interval, which stands below it."""
    return cell.partition(" (")[0]


def _interval(cell: str) -> str:
    return "".join(cell.partition(" (")[1:]).strip()


def _coded(text: str) -> str:
    """A sentence as HTML, with commands that stand between backticks as code."""
    parts = re.split(r"`([^`]*)`", text)
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if at % 2 else part for at, part in enumerate(parts)
    )


def _look(cell: str) -> str:
    """The class of a verdict's cell. Empty for other cells."""
    return _CLASSES.get(cell[:1], "")


def markdown(
    report: Report, sections: Sequence[Section], files: Mapping[str, str], hints: Sequence[str] = ()
) -> str:
    """The report as Markdown with links to the plots. `files` has the file of each plot by "model plot"."""
    lines = [
        f"# {_title(sections)}",
        "",
        f"Made by modelkiln {report.version} from what the store holds.",
        "",
    ]
    for said in seeds.sections(report.models):
        lines += [f"## {said.name}, {said.table.title.lower()}", "", f"**{said.headline}.**", ""]
        lines += [*markdown_table(said.table), "", seeds.RANGE, ""]
    for each in sections:
        lines += [f"## {each.facts.name}", "", f"**{each.answer.headline}.**", ""]
        lines += _paragraphs([*each.limits, each.about])
        lines += _plots(each, each.large, files)
        lines += [f"### {each.key.title}", "", *markdown_table(each.key), "", *_paragraphs(each.first)]
        lines += _plots(each, each.second, files)
        if each.questions:
            lines += ["### Sample answers", "", *samples.markdown(list(each.questions))]
        lines += _plots(each, (*each.curves, *each.small), files)
        for table in each.tables:
            lines += [f"### {table.title}", "", *markdown_table(table), ""]
        lines += ["### What the figures mean", "", *_paragraphs(each.more)]
    lines += _paragraphs(hints)
    return "\n".join(lines)


def _plots(each: Section, plots: Sequence[Plot], files: Mapping[str, str]) -> list[str]:
    lines = []
    for plot in plots:
        lines += [f"![{plot.title}]({files[f'{each.facts.name} {plot.name}']})", "", plot.text, ""]
    return lines


def _paragraphs(said: Sequence[str]) -> list[str]:
    return [line for each in said for line in (each, "")]


def summary(model: ModelReport) -> str:
    """Markdown for a README: the answer, the first table, then what is counted, required and not certain."""
    counted = notes.observations(model)
    said = [f"Measured: {counted}." if counted else "", *notes.required(model), *tables.doubted(model)]
    table = markdown_table(tables.key(model, brief=True))
    return "\n".join([f"**{answer(model).headline}.**", "", *table, "", " ".join(filter(None, said)), ""])


def markdown_table(made: Table) -> list[str]:
    """The lines of a table in Markdown."""
    return table_lines(made.headings, made.rows, made.text)


def _title(sections: Sequence[Section]) -> str:
    return "What survived: " + ", ".join(each.facts.name for each in sections)


def _count(number: int) -> str:
    return "1 variant is" if number == 1 else f"{number} variants are"
