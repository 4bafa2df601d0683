"""Shows a Report as one self-contained HTML page and as Markdown, with equal tables and sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources

from builder.console.markdown import table as table_lines
from builder.report import notes, tables
from builder.report.facts import ModelReport, Report
from builder.report.plots import Plot
from builder.report.tables import Table

ABOVE = 2  # notes that stand above the plots: what was counted, what is required
NO_PLOTS = "There are no plots: `pip install matplotlib` adds them."


@dataclass(frozen=True)
class Section:
    """What the page says about one model. The first `open` tables are visible, the others are folded."""

    facts: ModelReport
    heading: str
    tables: tuple[Table, ...]
    notes: tuple[str, ...]
    plots: tuple[Plot, ...]
    open: int


def section(model: ModelReport, plots: Sequence[Plot]) -> Section:
    """The section of one model, with its tables, notes and plots."""
    few, every = tables.study(model, few=True), tables.study(model)
    shown = [table for table in (few, tables.whose_loss(model)) if table]
    more = replace(every, title="All figures") if every.headings != few.headings else None
    asked = [table for table in (more, tables.comparisons(model), tables.provenance(model)) if table]
    worn = f"with the adapter {model.adapter}" if model.adapter else "without an adapter"
    heading = f"The base {model.base} {worn}; {_count(len(model.rows))} built."
    said = tuple(notes.notes(model))
    return Section(model, heading, (*shown, *asked), said, tuple(plots), len(shown))


def html(report: Report, sections: Sequence[Section], hints: Sequence[str] = ()) -> str:
    """The report as one HTML page that loads nothing from elsewhere."""
    from jinja2 import Environment

    source = resources.files("builder.report").joinpath("page.html.j2").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, trim_blocks=True, keep_trailing_newline=True)
    template = environment.from_string(source)
    return template.render(
        report=report,
        title=_title(sections),
        models=sections,
        hints=hints,
        above=ABOVE,
        value=_value,
        interval=_interval,
    )


def _value(cell: str) -> str:
    """A figure without its interval, which stands below it."""
    return cell.partition(" (")[0]


def _interval(cell: str) -> str:
    return "".join(cell.partition(" (")[1:]).strip()


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
    for each in sections:
        lines += [f"## {each.facts.name}", "", each.heading, ""]
        for number, table in enumerate(each.tables):
            lines += [f"### {table.title}", "", *markdown_table(table), ""]
            if number == 0:
                lines += [line for note in each.notes[:ABOVE] for line in (note, "")]
                for plot in each.plots:
                    link = files[f"{each.facts.name} {plot.name}"]
                    lines += [f"![{plot.title}]({link})", "", plot.text, ""]
                lines += [line for note in each.notes[ABOVE:] for line in (note, "")]
    lines += [line for hint in hints for line in (hint, "")]
    return "\n".join(lines)


def summary(model: ModelReport) -> str:
    """Markdown for a README: the answer in six columns, then what is counted, required and not certain."""
    said = [notes.meant(model), *notes.required(model), *tables.doubted(model)]
    return "\n".join([*markdown_table(tables.answer(model)), "", " ".join(filter(None, said)), ""])


def markdown_table(made: Table) -> list[str]:
    """The lines of a table in Markdown."""
    return table_lines(made.headings, made.rows, made.text)


def _title(sections: Sequence[Section]) -> str:
    return "What survived: " + ", ".join(each.facts.name for each in sections)


def _count(number: int) -> str:
    return "1 variant is" if number == 1 else f"{number} variants are"
