"""Parses what a variant does with its calibration text, after `builder.spec.shape` has checked the types."""

from __future__ import annotations

import math
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

from builder.console.words import listed, quoted, shown, size_of_text
from builder.spec.problems import Problems
from builder.spec.quantizers import METHOD_SETTINGS, NEAREST, SMALLEST, TUNES, Calibrated, Goal, Learned
from builder.spec.shape import Values
from builder.spec.types import Quantization

# key -> the least and the greatest value that a method can work with
_RANGES: dict[str, tuple[float, float]] = {
    "seed": (0, 2**32 - 1),  # numpy takes no other seed
    "samples": (1, 10**6),
    "sequence_length": (2, 10**6),
    "learning_rate": (1e-12, 1.0),
    "high_bits": (2, 8),
    "target_bpw": (1.0, 16.0),
}
_TABLES = ("method", "calibration")  # said to Learned in another way


def learned(values: Values, how: Quantization | None, problems: Problems) -> Learned | None:
    """The settings of a learned quantizer. None after a problem. `how`: what the variant says of bits."""
    method = values.get("method")
    wrong = [key for key in ("from", "calibration") if not values.says(key)]
    for key in wrong:
        problems.add(values.place, f"method needs {key}; add it")
    known = {field.name for field in fields(Learned)}
    given = {key: value for key, value in values.given.items() if key in known and key not in _TABLES}
    for key, value in given.items():
        if what := _problem(key, value, method, how):
            problems.add(values.place.key(key), what)
            wrong.append(key)
    if wrong or values.bad:
        return None
    return Learned(method, values.get("from"), Path(values.get("calibration")), **given)


def calibrated(values: Values, problems: Problems) -> Calibrated | None:
    """The settings of calibrated rounding. None after a problem.

    Beside `experts` the text is there to measure them, and weights are rounded for it only if asked for.
    """
    given = {key: values.given[key] for key in ("samples", "sequence_length") if key in values.given}
    for key, value in given.items():
        if what := _out_of_range(key, value):
            problems.add(values.place.key(key), what)
    if not values.get("calibration"):
        return None
    rounding = values.given.get("rounding", NEAREST if values.says("experts") else None)
    nearest = rounding == NEAREST
    return Calibrated(Path(values.get("calibration")), **given, nearest=nearest)


def goal(values: Values, problems: Problems) -> Goal | None:
    """The size that a variant asks for. None without one, or after a problem."""
    text = values.get("target")
    if text is None:
        return None
    if not values.says("calibration"):
        problems.add(values.place, "target needs calibration beside it; add the text to measure with")
    if text == SMALLEST:
        return Goal()
    if match := re.fullmatch(r"(\d+(?:\.\d+)?)\s*bpw", text):
        if 2 <= float(match[1]) <= 16:
            return Goal(bits_per_weight=float(match[1]))
        problems.add(values.place.key("target"), f"target = {quoted(text)} is not from 2bpw to 16bpw")
        return None
    nbytes = size_of_text(text)
    if not nbytes:
        what = f'target = {quoted(text)} is not a size; write, for example, "4.7bpw", "18GB" or "smallest"'
        problems.add(values.place.key("target"), what)
        return None
    return Goal(nbytes=nbytes)


def _problem(key: str, value: Any, method: str, how: Quantization | None) -> str | None:
    """What is wrong with one setting, or None."""
    used = [each for each, names in METHOD_SETTINGS.items() if key in names]
    if key == "start":
        wrong = f"start is not for method {quoted(method)} but for {TUNES}; remove it"
        return None if method == TUNES else wrong
    if method in METHOD_SETTINGS and key not in METHOD_SETTINGS[method]:
        return f"{key} is not for method {quoted(method)} but for {listed(used, 'and')}; remove it"
    if what := _out_of_range(key, value):
        return what
    if key == "target_bpw" and how is not None and value < (own := how.bits + 32 / how.group_size):
        bits = f"{how.bits} bits in groups of {how.group_size}"
        return f"target_bpw = {shown(value)} cannot be reached: {bits} are {own:g} already"
    return None


def _out_of_range(key: str, value: float) -> str | None:
    """What is wrong with a number, or None."""
    least, most = _RANGES[key]
    if not math.isfinite(value):
        return f"{key} = {shown(value)} is not a number that can be used; write a finite number"
    if not least <= value <= most:
        small = "small" if value < least else "large"
        return f"{key} = {shown(value)} is too {small}; it must be from {least:g} to {most:g}"
    return None
