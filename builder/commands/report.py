"""`doit report`: writes the tables and plots of what was built and measured, as a page and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from builder.commands.base import OPT_JSON, ProjectCommand, print_json
from builder.commands.guard import writing
from builder.console.display import showing
from builder.console.tables import print_table
from builder.console.words import from_here, here, suggestion
from builder.errors import BuildError
from builder.project.project import Project
from builder.project.roots import fingerprint

OPT_OUT: Mapping[str, Any] = {
    "name": "out",
    "short": "o",
    "long": "out",
    "type": str,
    "default": "",
    "help": "folder to write to; default: report in the store",
}


class UnknownModel(BuildError):
    """there is no model "{name}"{near}"""

    exit_code = 3
    hint = "`doit list` shows what artifacts.toml declares."


class Report(ProjectCommand):
    name = "report"
    doc_purpose = "write the table, the plots and the provenance of what was built and measured"
    doc_usage = "[MODEL...]"
    doc_description = "Reads the store only: builds nothing, measures nothing, loads no model."
    cmd_options = (OPT_OUT, OPT_JSON)

    def run(self, project: Project, options: Mapping[str, Any], names: Sequence[str]) -> int:
        from builder.report.collect import collect

        if len(tuple(project.plan.resolved())) < len(project.spec.targets):
            with showing() as emit:  # some sources look new, and only their digests tell their builds
                fingerprint(project, emit)
        report = collect(project, known_models(project, names))
        if options["json"]:
            from builder.report.document import as_json, document
            from builder.report.seeds import of_seeds

            models = [document(model) for model in report.models]
            seeds = [as_json(asdict(each)) for each in of_seeds(report.models)]
            print_json("report", version=report.version, models=models, seeds=seeds)
            return 0
        folder = here() / options["out"] if options["out"] else project.store.root / "report"
        written = write(report, folder)
        show(report)
        for path in written:
            print(from_here(path))
        return 0


def write(report: Any, folder: Path) -> list[Path]:
    """Writes the page, the Markdown and the plots, and returns their paths. Raises Unwritable.

    Each file is replaced as a whole.
    """
    from builder.report import drawing, page, plots
    from builder.report.answer import answer
    from builder.store.disk.durable import replace_text

    drawn = {model.name: plots.plots(model) if drawing.available() else [] for model in report.models}
    hints = [] if drawing.available() else [page.NO_PLOTS]
    hints += [f"{each.name}: {answer(each).headline}." for each in report.models if not each.rows]
    sections = [page.section(model, drawn[model.name]) for model in report.models if model.rows]
    named = {f"{name} {plot.name}": plot for name, made in drawn.items() for plot in made}
    files = {name: f"{name.replace(' ', '-')}.svg" for name in named}
    texts = {files[name]: plot.file for name, plot in named.items()}
    texts |= {f"{each.facts.name}-table.md": page.summary(each.facts) for each in sections}
    texts["report.md"] = page.markdown(report, sections, files, hints)
    texts["index.html"] = page.html(report, sections, hints)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            replace_text(folder / name, text)
    return [folder / name for name in sorted(texts)]


def show(report: Any) -> None:
    """Prints the answer, the first table and the frontier of each model, and a table over its seeds."""
    from builder.report import seeds, tables
    from builder.report.answer import answer
    from builder.report.frontier import sentences

    for model in report.models:
        print(f"{model.name}: {answer(model).headline}.")
        table = tables.key(model, brief=True)
        if model.rows:
            print_table(
                table.headings,
                table.rows,
                left=[table.headings[at] for at in table.text],
                unimportant=("bits/weight",),
            )
        for sentence in sentences(model):
            print(sentence)
        print()
    for said in seeds.sections(report.models):
        print(f"{said.name}: {said.headline}.")
        print_table(said.table.headings, said.table.rows, left=("variant",))
        print(seeds.RANGE)
        print()


def known_models(project: Project, names: Sequence[str]) -> list[str]:
    """The models of names. A declared name with several seeds means all of them. Raises UnknownModel."""
    from builder.spec.seeds import models_of

    seeded = models_of(project.spec.models.values())
    found: dict[str, None] = {}
    for name in (each.removeprefix("model:") for each in names):
        family = [model.name for model in seeded.get(name, ())]
        found |= dict.fromkeys(family or [known_model(project, name)])
    return [*found]


def known_model(project: Project, name: str) -> str:
    if name in project.spec.models:
        return name
    raise UnknownModel(name=name, near=suggestion(name, list(project.spec.models)))
