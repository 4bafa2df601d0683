"""The card of a publication: what it is, what was measured, how to run it, where it came from. Pure."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from builder.build.card import facts_table, origin, summary
from builder.console import markdown
from builder.console.states import limit_text
from builder.console.words import number
from builder.evaluate.circumstances import told
from builder.evaluate.results import Result, doubts, figures, interval_text, missed
from builder.publish.bundle import ATTESTATION
from builder.publish.front import Facts, front_matter
from builder.spec.types import Base, Condition, Metric
from builder.store.types import Manifest

PLOT = "quality.svg"


@dataclass(frozen=True)
class Evidence:
    """Everything that the card of a target says. `address` is what a program loads: a repository or a folder.

    `override` is the reason why a target is published that misses its requirements. `plot` says in words
    what the plot shows, and is empty without a plot.
    """

    facts: Facts
    manifest: Manifest
    base: Base
    require: tuple[Condition, ...]
    results: Mapping[str, Result]
    address: str
    system: str | None = None
    override: str | None = None
    plot: str = ""


def render(said: Evidence) -> str:
    """The card as Markdown, with its front matter."""
    parts = [
        front_matter(said.facts, said.results),
        f"# {said.facts.name}",
        summary(said.manifest, said.base),
        _licence(said),
        _override(said),
        _quality(said),
        _running(said),
        "## Where it came from",
        facts_table(said.manifest),
        f"`{ATTESTATION}` is an in-toto statement with SLSA provenance. It has the SHA-256 and the BLAKE3 of "
        "every file of the model. It is not signed.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _licence(said: Evidence) -> str:
    found = said.facts.licence
    if found is None:
        return "The files of the base name no licence. Ask its authors before you use this model."
    source = f" ({found.where} of the base: `{found.said}`)" if found.said else ""
    based = f" The base is {origin(said.base)}." if said.facts.base is None else ""
    return f"Licence: {found.name}{source}.{based}"


def _override(said: Evidence) -> str:
    short = missed(said.require, said.results)
    if not short:
        return ""
    what = "; ".join(map(str, short))
    return (
        f"> **This model misses a requirement of its authors and is published all the same.**\n"
        f"> {what}.\n>\n> The reason that was given: {' '.join((said.override or '').split())}"
    )


def _quality(said: Evidence) -> str:
    if not said.results:
        return "## Quality\n\nNot measured."
    wanted = {each.metric: each for each in said.require}
    failed = {miss.condition for miss in missed(said.require, said.results)}
    rows = []
    for suite, result in said.results.items():
        for name, figure in figures(result):
            condition = wanted.get(Metric(suite, name))
            asked = limit_text(condition.operator, f"{condition.value:g}") if condition else "-"
            verdict = "" if condition is None else " (missed)" if condition in failed else " (met)"
            interval = interval_text(figure) or "-"
            rows.append((f"{suite}.{name}", number(figure.value), interval, figure.counted, asked + verdict))
    headings = ("figure", "value", "95 % interval", "n", "required")
    parts = ["## Quality", "\n".join(markdown.table(headings, rows))]
    if unsure := doubts(said.require, said.results):
        parts.append(f"Met, but not with certainty: {'; '.join(map(str, unsure))}.")
    if measured := told(result.made for result in said.results.values()):
        parts.append(f"Measured {measured.when}, on {measured.where}, with {measured.how}.")
    if said.plot:
        parts.append(f"![{said.plot}]({PLOT})")
        parts.append(said.plot)
    return "\n\n".join(parts)


def _running(said: Evidence) -> str:
    messages = [{"role": "system", "content": said.system}] if said.system is not None else []
    messages.append({"role": "user", "content": "Hello"})
    lines = [f"    {json.dumps(each, ensure_ascii=False)}," for each in messages]
    system = f" --system-prompt {shlex.quote(said.system)}" if said.system is not None else ""
    parts = ["## Run it"]
    if said.system is not None:
        parts.append("The fine-tune was measured with the system prompt that these examples give.")
    command = f"mlx_lm.generate --model {shlex.quote(said.address)}{system} --prompt Hello --max-tokens 100"
    parts.append(f"```sh\n{command}\n```")
    parts.append(
        "\n".join(
            [
                "```python",
                "from mlx_lm import generate, load",
                "",
                f"model, tokenizer = load({json.dumps(said.address)})",
                "messages = [",
                *lines,
                "]",
                "prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True)",
                "print(generate(model, tokenizer, prompt=prompt, max_tokens=100))",
                "```",
            ]
        )
    )
    parts.append(_studio(said))
    return "\n\n".join(parts)


def _studio(said: Evidence) -> str:
    system = json.dumps(said.system, ensure_ascii=False)
    prompt = f", and set the system prompt to {system}" if said.system else ""
    if said.address == ".":
        return (
            "LM Studio looks for models in `~/.lmstudio/models/PUBLISHER/MODEL`. Put a copy of this folder "
            f"there{prompt}."
        )
    return f"In LM Studio search for `{said.address}`, or run `lms get {said.address}`{prompt}."
