"""Parses [adapter.NAME], after `builder.spec.shape` has checked its types."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from builder.console.words import quoted, shown, suggestion
from builder.spec.problems import Problems
from builder.spec.shape import Values
from builder.spec.training import SCHEDULES, Packed, Schedule, Training
from builder.spec.types import Adapter, Variant

# key -> the least and the greatest value that training can work with
_RANGES: dict[str, tuple[float, float]] = {
    "rank": (1, 2**16),
    "scale": (1e-12, 1e6),
    "dropout": (0, 0.999),
    "iterations": (1, 10**9),
    "batch_size": (1, 2**20),
    "grad_accumulation_steps": (1, 2**20),
    "learning_rate": (1e-12, 1e3),
    "max_length": (2, 2**24),
    "seed": (0, 2**32 - 1),  # numpy takes no other seed
    "steps_per_eval": (1, 10**9),
    "save_every": (1, 10**9),
    "patience": (1, 10**9),
    "warmup": (0, 10**9),
    "warmup_init": (0, 1e3),
}
_ALL = {"layers": "all layers", "val_batches": "all of them"}  # -1 says so
_OF_PAIRS = ("rank", "scale", "dropout", "keys", "on")


def adapter(
    name: str,
    values: Values,
    folders: tuple[Path, Path],
    variants: Mapping[str, Variant],
    problems: Problems,
) -> Adapter:
    """An adapter. After a problem its values do not matter, because the parse fails.

    folders: that of the file, and the store. The folder of a trained adapter has the name of its key. Until
    that is known, `path` is the folder around.
    """
    folder, store = folders
    base, tokenizer = str(values.get("base")), values.get("tokenizer")
    table = values.get("train")
    if table is None:
        path = folder / Path(values.get("path") or "").expanduser()
        return Adapter(name, base, path, tokenizer)
    if values.says("tokenizer") and tokenizer == "adapter":
        what = 'tokenizer = "adapter" is not for a trained adapter, which has none of its own; remove it'
        problems.add(values.place.key("tokenizer"), what)
    return Adapter(name, base, store / "adapters", tokenizer, _training(table, folder, variants, problems))


def _training(
    values: Values, folder: Path, variants: Mapping[str, Variant], problems: Problems
) -> Training | None:
    known = {field.name for field in fields(Training)} - {"data", "schedule", "keys", "on"}
    given: dict[str, Any] = {key: value for key, value in values.given.items() if key in known}
    for key, value in given.items():
        if what := _problem(key, value):
            problems.add(values.place.key(key), what)
    if values.get("type") == "full":
        for key in _OF_PAIRS:
            if values.says(key):
                problems.add(values.place.key(key), f"{key} is not for type full; remove it")
    if values.get("data") is None:
        return None
    keys = tuple(each for each in values.given.get("keys", ()) if each)
    table = values.get("schedule")
    schedule = None if table is None else _schedule(table, problems)
    given |= {key: float(given[key]) for key in ("scale", "dropout", "learning_rate") if key in given}
    path = folder / Path(values.get("data")).expanduser()
    return Training(path, keys=keys, schedule=schedule, on=_on(values, variants, problems), **given)


def _on(values: Values, variants: Mapping[str, Variant], problems: Problems) -> Packed | None:
    name = values.get("on")
    if name is None:
        return None
    variant, place = variants.get(name), values.place.key("on")
    if variant is None:
        problems.add(place, f"variant {quoted(name)} is not declared{suggestion(name, list(variants))}")
        return None
    how = variant.quantization
    plain = not (variant.learned or variant.calibrated or variant.goal or variant.overrides)
    if how is None or not plain:
        what = f"on = {quoted(name)}: an adapter is trained on a variant that has bits or mode, and no more"
        problems.add(place, what)
        return None
    return Packed(how.bits, how.group_size, how.mode)


def _schedule(values: Values, problems: Problems) -> Schedule | None:
    name, arguments = values.get("name"), values.get("arguments")
    for key in ("warmup", "warmup_init"):
        if key in values.given and (what := _problem(key, values.given[key])):
            problems.add(values.place.key(key), what)
    if name is None or arguments is None:
        return None
    least, most = SCHEDULES[name]
    if not least <= len(arguments) <= most:
        number = f"{least}" if least == most else f"{least} or {most}"
        what = f"{name} takes {number} arguments, found {len(arguments)}"
        problems.add(values.place.key("arguments"), what)
    elif not all(map(math.isfinite, arguments)):
        problems.add(values.place.key("arguments"), "arguments: write finite numbers")
    rest = {key: values.given[key] for key in ("warmup", "warmup_init") if key in values.given}
    return Schedule(name, tuple(float(each) for each in arguments), **rest)


def _problem(key: str, value: object) -> str | None:
    """What is wrong with one setting, or None."""
    if key in _ALL and isinstance(value, int):
        wrong = value < 1 and value != -1
        return f"{key} = {value} is not possible; write 1 or more, or -1 for {_ALL[key]}" if wrong else None
    if key not in _RANGES or not isinstance(value, int | float):
        return None
    least, most = _RANGES[key]
    if not math.isfinite(value):
        return f"{key} = {shown(value)} is not a number that can be used; write a finite number"
    if least <= value <= most:
        return None
    small = "small" if value < least else "large"
    return f"{key} = {shown(value)} is too {small}; it must be from {least:g} to {most:g}"
