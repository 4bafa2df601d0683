"""The curves of training: the loss of the rows, and that of the validation rows."""

from __future__ import annotations

from builder.report.drawing import INK, Plot, canvas, svg_of
from builder.report.facts import ModelReport

_TITLE = "Training"


def training_plot(model: ModelReport) -> Plot | None:
    """Both curves, and the step that was kept. None for a model whose adapter was not trained here."""
    made = model.training
    if made is None or len(made.train) < 2:
        return None
    figure, axes = canvas()
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
    axes.axvline(made.kept, color=INK, linewidth=0.5, linestyle=":", label=f"kept: step {made.kept}")
    axes.set_xlabel("step")
    axes.set_ylabel("loss, nats per token")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, labelcolor=INK, fontsize=9)
    losses = dict(made.valid)
    said = f"The loss of the training rows over {made.steps} steps: {made.train[0][1]:.3g} at the first, "
    said += f"{made.train[-1][1]:.3g} at the last."
    if made.kept in losses:
        said += f" Step {made.kept} is the adapter. Its validation loss is {losses[made.kept]:.3g}."
    return Plot("training", _TITLE, said, svg_of(figure, "training", _TITLE))
