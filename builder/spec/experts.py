"""Parses which experts a variant keeps, after `builder.spec.shape` has checked the types."""

from __future__ import annotations

from builder.console.words import shown
from builder.spec.problems import Problems
from builder.spec.quantizers import CRITERIA, SMALLEST, Experts
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
    criterion = values.given.get("criterion", CRITERIA[0])
    if isinstance(share, list):
        return _choices(values, [float(each) for each in share], criterion, problems)
    if not 0 < share < 1:
        what = f"experts = {shown(share)} is not a share between 0 and 1"
        problems.add(place, f"{what}; write, for example, experts = 0.75 to keep three quarters of them")
        return None
    return Experts(float(share), criterion)


def _choices(values: Values, shares: list[float], criterion: str, problems: Problems) -> Experts | None:
    """Several shares, of which a search chooses one."""
    place = values.place.key("experts")
    if values.given.get("target") != SMALLEST:
        what = f'experts = {shown(shares)} needs target = "smallest" beside it, which searches among them'
        problems.add(place, f"{what}; write one share, or add the target")
    wrong = [share for share in shares if not 0 < share <= 1]
    if wrong:
        problems.add(place, f"experts: {shown(wrong[0])} is not a share above 0 and up to 1")
    elif len(set(shares)) < 2:
        problems.add(place, "experts: one share leaves nothing to search; write several, or a number")
    return Experts(shares[0], criterion, tuple(sorted(set(shares), reverse=True)))
