"""The curves of training: the loss of the rows, and that of the validation rows."""

from __future__ import annotations

from typing import Any

from builder.report.drawing import INK, Plot, canvas, svg_of
from builder.report.facts import ModelReport, Trained
from builder.report.points import FONT

CURVES = "training"  # the name of this plot
_TITLE = "Training"


def training_plot(model: ModelReport) -> Plot | None:
    """Both curves, and the step that was kept. None for a model whose adapter was not trained here."""
    made = model.training
    if made is None or len(made.train) < 2:
        return None
    losses = dict(made.valid)
    said = f"The loss of the training rows over {made.steps} steps: {made.train[0][1]:.3g} at the first, "
    said += f"{made.train[-1][1]:.3g} at the last."
    if made.kept in losses:
        said += f" Step {made.kept} is the adapter. Its validation loss is {losses[made.kept]:.3g}."
    wide, narrow = _drawn(made, 5.2), _drawn(made, 4.6)
    return Plot(
        CURVES, _TITLE, said, svg_of(wide, CURVES, _TITLE, 1.4), svg_of(narrow, f"{CURVES}-narrow", _TITLE, 1)
    )


def _drawn(made: Trained, width: float) -> Any:
    figure, axes = canvas(width, font=FONT)
    axes.plot(*zip(*made.train, strict=True), "-", linewidth=0.7, color=INK, label="training rows")
    if made.valid:
        axes.plot(
            *zip(*made.valid, strict=True),
            "--",
            marker="o",
            markersize=3.5,
            linewidth=1.1,
            color=INK,
            label="validation rows",
        )
    axes.axvline(made.kept, color=INK, linewidth=0.9, linestyle=":", label=f"kept: step {made.kept}")
    axes.set_xlabel("step")
    axes.set_ylabel("loss, nats per token")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, labelcolor=INK, fontsize=FONT)
    return figure
