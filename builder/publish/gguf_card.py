"""The card of a publication of GGUF files: what each file really holds, and how well it answers. Pure."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from builder.build.card import facts_table, origin
from builder.console import markdown
from builder.console.states import limit_text
from builder.console.words import listed, number, size_text
from builder.evaluate.circumstances import told
from builder.evaluate.results import Result, figure_of, figures, interval_text, missed
from builder.publish.bundle import ATTESTATION
from builder.publish.evidence import Licence
from builder.publish.front import Facts, front_matter
from builder.publish.gguf.keeping import Gguf
from builder.spec.destinations import EXACT
from builder.spec.types import Base, Condition, Metric
from builder.store.types import Manifest


@dataclass(frozen=True)
class GgufFile:
    """A file and its results. `gguf` None: it is not made yet."""

    name: str
    size: int
    gguf: Gguf | None
    results: Mapping[str, Result]

    @property
    def label(self) -> str:
        """How the file is called in tables: exact Q5_1, or Q8_0."""
        stem = self.name.removesuffix(".gguf")
        return " ".join(part for part in stem.split("-") if part == EXACT or part == stem.rpartition("-")[2])


@dataclass(frozen=True)
class GgufEvidence:
    """Everything that such a card says. `address` is the repository, or empty for a folder."""

    title: str
    address: str
    base: Base
    base_model: str | None
    manifest: Manifest
    licence: Licence | None
    datasets: tuple[str, ...]
    require: tuple[Condition, ...]
    files: tuple[GgufFile, ...]
    system: str | None
    override: str | None


def render(said: GgufEvidence) -> str:
    """The card as Markdown, with its front matter."""
    adapter = said.manifest.inputs.get("adapter")
    facts = Facts(
        said.title, "gguf", said.base_model, str(adapter or "") or None, "gguf", said.licence, said.datasets
    )
    results = {
        f"{suite}, {file.label}": result for file in said.files for suite, result in file.results.items()
    }
    worn = f" with the adapter `{adapter}` fused into it" if adapter else ""
    parts = [
        front_matter(facts, results),
        f"# {said.title}",
        f"The base `{said.base.name}` ({origin(said.base)}){worn}, as GGUF for llama.cpp, Ollama and "
        "LM Studio. Made by modelkiln.",
        _licence(said.licence),
        _override(said),
        _table(said),
        _quality(said),
        _running(said),
        "## Where it came from",
        _described(said),
        facts_table(said.manifest),
        f"`{ATTESTATION}` is an in-toto statement with the SHA-256 and the BLAKE3 of each file. It is not "
        "signed.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _described(said: GgufEvidence) -> str:
    """What the table of facts is about."""
    if "gguf" in said.manifest.settings:
        return f"`{said.files[0].name}` was made of the base and the adapter, block by block:"
    return f"The MLX model `{said.manifest.settings.get('variant', '')}` of the same base and adapter:"


def _licence(found: Licence | None) -> str:
    if found is None:
        return "The files of the base name no licence. Ask its authors before you use this model."
    source = f" ({found.where} of the base: `{found.said}`)" if found.said else ""
    return f"Licence: {found.name}{source}."


def _override(said: GgufEvidence) -> str:
    short = [
        f"`{file.name}`: {'; '.join(map(str, found))}"
        for file in said.files
        if (found := missed(said.require, file.results))
    ]
    if not short or said.override is None:
        return ""
    lines = ["> **Files miss a requirement of their authors and are published all the same.**"]
    lines += [f"> {line}" for line in short]
    return "\n".join([*lines, ">", f"> The reason that was given: {' '.join(said.override.split())}"])


def _table(said: GgufEvidence) -> str:
    rows = []
    for file in said.files:
        made = file.gguf
        bits, mix = (f"{made.bits_per_weight:.2f}", made.shares) if made else ("-", "not made yet")
        rows.append((f"`{file.name}`", size_text(file.size), bits, mix))
    parts = ["## Files", "\n".join(markdown.table(("file", "size", "bits per weight", "types"), rows))]
    if any(EXACT in file.label for file in said.files):
        variant = said.manifest.settings.get("variant", "")
        parts.append(
            f"The file named `exact` holds the very weights of the MLX model `{variant}`, bit for bit. Both "
            "formats store a scale and an offset for each group. The other files are made of the unquantized "
            "model."
        )
    weighed = [file for file in said.files if file.gguf and file.gguf.text]
    if weighed and weighed[0].gguf:
        names = listed([f"`{file.name}`" for file in weighed], "and")
        parts.append(
            f"llama.cpp quantized {names} with an importance matrix: how large the inputs of each weight are "
            f"on {weighed[0].gguf.text}."
        )
    return "\n\n".join(parts)


def _quality(said: GgufEvidence) -> str:
    measured = [file for file in said.files if file.results]
    if not measured:
        return "## Quality\n\nNot measured."
    wanted = {each.metric: each for each in said.require}
    metrics = dict.fromkeys(
        Metric(suite, name)
        for file in measured
        for suite, result in file.results.items()
        for name, _ in figures(result)
    )
    rows = []
    for metric in metrics:
        asked = wanted.get(metric)
        limit = limit_text(asked.operator, f"{asked.value:g}") if asked else "-"
        rows.append((str(metric), *(_cell(file, metric, asked) for file in measured), limit))
    headings = ("figure", *(file.label for file in measured), "required")
    parts = ["## Quality", "\n".join(markdown.table(headings, rows))]
    parts.append("Values with their 95 % interval. llama.cpp computed them from these files.")
    if made := told(result.made for file in measured for result in file.results.values()):
        parts.append(f"Measured {made.when}, on {made.where}, with {made.how}.")
    return "\n\n".join(parts)


def _cell(file: GgufFile, metric: Metric, asked: Condition | None) -> str:
    figure = figure_of(file.results, metric)
    if figure is None:
        return "-"
    interval = f" ({said})" if (said := interval_text(figure)) else ""
    verdict = " missed" if asked and missed((asked,), file.results) else ""
    return f"{number(figure.value)}{interval}{verdict}"


def _running(said: GgufEvidence) -> str:
    first = said.files[0]
    system = f" -sys {shlex.quote(said.system)}" if said.system else ""
    kind = first.label.split()[-1]
    lines = [f"llama-cli -m {first.name}{system} -p Hello"]
    if said.address:
        lines = [
            f"llama-cli -hf {said.address}:{kind}{system} -p Hello",
            f"ollama run hf.co/{said.address}:{kind}",
        ]
    parts = ["## Run it"]
    if said.system is not None:
        parts.append(f"The fine-tune was measured with this system prompt: {json.dumps(said.system)}")
    return "\n\n".join([*parts, "```sh\n" + "\n".join(lines) + "\n```"])
