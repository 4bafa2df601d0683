"""The curves of a run: as text in the store, and as lines for a terminal. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

ADAPTER, CONFIG, CURVE = "adapters.safetensors", "adapter_config.json", "curve.json"
_BARS = "▁▂▃▄▅▆▇█"
_WIDE = 40  # characters of a curve

Points = Sequence[tuple[int, float]]


@dataclass(frozen=True)
class Curve:
    """Losses by step. `best`: the measured step with the least validation loss. `steps`: those made."""

    train: Points
    valid: Points
    best: int | None
    steps: int


def curve_to_text(curve: Curve) -> str:
    """The curve as the store keeps it."""
    said = {"train": curve.train, "valid": curve.valid, "best": curve.best, "steps": curve.steps}
    return json.dumps(said, indent=1) + "\n"


def curve_from(text: str) -> Curve:
    """What `curve_to_text` wrote. Raises ValueError, KeyError, TypeError."""
    said = json.loads(text)
    train, valid = ([(int(step), float(loss)) for step, loss in said[name]] for name in ("train", "valid"))
    return Curve(train, valid, said["best"], int(said["steps"]))


def summary(curve: Curve, keep: str, fused: float | None = None) -> tuple[str, ...]:
    """What a person wants to see at the end of a run.

    `fused`: the validation loss on the unquantized base, of an adapter that was trained on a quantized one.
    """
    found = [_line("training loss", curve.train, curve.steps)]
    if curve.valid:
        found.append(_line("validation loss", curve.valid, curve.steps))
    if keep == "best" and curve.best is not None:
        loss = dict(curve.valid)[curve.best]
        found.append(f"kept step {curve.best} of {curve.steps}, with the validation loss {loss:.3f}")
    else:
        found.append(f"kept the last step, {curve.steps}")
    if fused is not None:
        found.append(f"fused into the unquantized base, the validation loss is {fused:.3f}")
    untrained, measured = dict(curve.valid).get(0), [loss for step, loss in curve.valid if step]
    if untrained is not None and measured and min(measured) >= untrained:
        found.append(f"no step is better than the base alone, which has the validation loss {untrained:.3f}")
    return tuple(found)


def _line(name: str, points: Points, steps: int) -> str:
    first, last = points[0][1], points[-1][1]
    return f"{name:15} {drawn(points, steps)}  {first:.3f} -> {last:.3f}"


def drawn(points: Points, steps: int, width: int = _WIDE) -> str:
    """A curve as a line of bars over all steps. Where nothing was measured, the last value is drawn.

    >>> drawn([(1, 3.0), (2, 2.0), (3, 1.0), (4, 1.0)], 4, 4)
    '█▅▁▁'
    """
    losses = [loss for _, loss in points]
    least, most = min(losses), max(losses)
    cells: list[list[float]] = [[] for _ in range(width)]
    for step, loss in points:
        cells[min(width - 1, max(0, step - 1) * width // max(1, steps))].append(loss)
    text, value = "", losses[0]
    for cell in cells:
        value = sum(cell) / len(cell) if cell else value
        height = (value - least) / (most - least) if most > least else 0.0
        text += _BARS[round(height * (len(_BARS) - 1))]
    return text
