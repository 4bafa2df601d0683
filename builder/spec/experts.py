"""Parses which experts a variant keeps, after `builder.spec.shape` has checked the types."""

from __future__ import annotations

from builder.console.words import shown
from builder.spec.problems import Problems
from builder.spec.quantizers import CRITERIA, Experts
from builder.spec.shape import Values

_QUANTIZED = ("bits", "mode", "recipe", "target")


def experts(values: Values, problems: Problems) -> Experts | None:
    """The share of experts that a variant keeps. None without one, or after a problem."""
    share = values.get("experts")
    if share is None:
        return None
    place = values.place.key("experts")
    if not values.says("calibration"):
        problems.add(values.place, "experts needs calibration beside it; add the text to measure them with")
    if values.given.get("rounding") == "calibrated" and not any(values.says(key) for key in _QUANTIZED):
        what = "rounding needs bits, mode, recipe or target beside it: this variant rounds nothing; remove it"
        problems.add(values.place.key("rounding"), what)
    if not 0 < share < 1:
        what = f"experts = {shown(share)} is not a share between 0 and 1"
        problems.add(place, f"{what}; write, for example, experts = 0.75 to keep three quarters of them")
        return None
    return Experts(float(share), values.given.get("criterion", CRITERIA[0]))
