"""The sentences that go with the tables of a Report. No sentence says more than its numbers."""

from __future__ import annotations

from builder.report import experts
from builder.report.answer import required_text
from builder.report.cells import is_distance, memory
from builder.report.facts import ModelReport


def first(model: ModelReport) -> list[str]:
    """The sentences that stand beside the first table: what is counted, and what is not there."""
    said = [counted(model) or "Nothing is measured yet: `doit eval` measures what [model] suites name."]
    said += [f"{suite}: not measured: questions missing ({what})." for suite, what in model.unread.items()]
    unbuilt = [row.variant for row in model.rows if not row.is_built]
    if unbuilt:
        said.append(
            f"Measured from base and adapter, not on disk: {', '.join(unbuilt)}; the size is what it takes."
        )
    if model.training and model.training.fused_loss is not None and model.training.loss is not None:
        on = model.training.settings.get("on")
        said.append(
            f"Trained on the base with {on}: validation loss {model.training.loss:.3g} there, and "
            f"{model.training.fused_loss:.3g} fused into the unquantized base."
        )
    if model.training and model.training.overlaps:
        shared = "; ".join(model.training.overlaps)
        said.append(f"Not only new questions: {shared}.")
    said += experts.sentences(model)
    if searched := [row.variant for row in model.rows if row.searched and row.figures]:
        said.append(
            f"Searched with one half of the questions, and measured by the other half: {', '.join(searched)}."
        )
    if model.absent:
        states = [f"{name} ({model.states.get(name, 'not built')})" for name in model.absent]
        said.append(f"Without figures: {', '.join(states)}.")
    return said


def more(model: ModelReport) -> list[str]:
    """The sentences that explain the figures and the tests."""
    said = [f"{row.variant} misses {'; '.join(row.misses)}." for row in model.rows if row.verdict == "misses"]
    said += _of_fidelity(model)
    if any(row.survival and row.survival.db is not None for row in model.rows):
        said.append(
            "Survival: the adapter's change against the rounding error, in dB, in the adapted weights; "
            "at 0 dB both are equally large. Estimated from a sample of the rows of each weight."
        )
    if any(row.survival for row in model.rows):
        said.append(
            "Quantization error: the rounding error of all quantized weights against the weights, estimated "
            "from a sample of the rows of each weight."
        )
    peaks = [row for row in model.rows if memory(model, row) != "-"]
    said.append(
        "Memory: the peak of arrays while generating." if peaks else "A generate suite measures the memory."
    )
    said += _of_control(model)
    if model.compared:
        said.append(
            f"The {len(model.compared)} paired tests are judged together, by Holm's method at 5 %. Right and "
            "wrong answers: McNemar's exact test, Newcombe's interval. Others: random signs of the "
            "differences by question, Student's interval. The intervals are those of single comparisons."
        )
    return said


def required(model: ModelReport) -> list[str]:
    """The sentence that names the requirements. Empty if the model has none."""
    return [f"Required: {required_text(model)}."] if model.required else []


def counted(model: ModelReport) -> str:
    """What the brackets are, and how many observations they come from. Empty if nothing is measured."""
    asked = observations(model)
    return f"In brackets the 95 % interval ({asked})." if asked else ""


def observations(model: ModelReport) -> str:
    """How many observations each suite has: "routing n = 120". Empty if nothing is measured."""
    asked = []
    for suite in model.kinds:
        figures = [f for row in model.rows for metric, f in row.figures.items() if metric.suite == suite]
        if figures:
            asked.append(f"{suite} n = {max(figures, key=lambda figure: figure.n).counted}")
    return ", ".join(asked)


def _of_fidelity(model: ModelReport) -> list[str]:
    if not any(is_distance(model, metric) for metric in model.metrics):
        return []
    k = ", ".join(map(str, dict.fromkeys(model.top_k.values())))
    return [
        "KL and same top token: against the fused, unquantized model on the same text, each token counts "
        f"once. KL is in nats per token: a lower bound over the reference's top {k} tokens and a remainder."
    ]


def _of_control(model: ModelReport) -> list[str]:
    if model.adapter is None:
        return []
    if model.control is None:
        return [
            f'No control: a model with base = "{model.base}", no adapter and the same variants would show '
            "what quantization does without the fine-tune."
        ]
    said = []
    if model.plain and any(is_distance(model, metric) for metric in model.metrics):
        said.append(
            f"{model.plain.variant}, no adapter: the base, {model.plain.target}. Its distance to the "
            "fine-tuned model is not measured."
        )
    without = [row.variant for row in model.rows if row.control_name is None]
    if without:
        said.append(f"Without a control, since {model.control} has none built: {', '.join(without)}.")
    return said
