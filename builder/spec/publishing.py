"""Parses [publish.NAME], after `builder.spec.shape` has checked its types."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from builder.console.words import listed, quoted, suggestion
from builder.spec.destinations import (
    EXACT,
    GGUF_TYPES,
    K_QUANTS,
    Benchmark,
    Destination,
    FolderPlace,
    HubPlace,
    OllamaPlace,
    Publication,
    destination,
    is_repository,
)
from builder.spec.learned import calibrated
from builder.spec.problems import Problems
from builder.spec.shape import Declared, Values
from builder.spec.suites import metric_of
from builder.spec.types import Metric, Suite

PRODUCTION = "production"
_ONLY_FOR: dict[str, tuple[type[Destination], str]] = {
    "private": (HubPlace, "hf://"),
    "benchmarks": (HubPlace, "hf://"),
    "link": (FolderPlace, "a folder or lmstudio://"),
}


def publications(
    declared: Declared,
    targets: Iterable[str],
    folder: Path,
    store: Path,
    suites: Mapping[str, Suite],
    problems: Problems,
) -> dict[str, Publication]:
    """What every table declares. After a problem the values do not matter, because the parse fails."""
    known = [*targets, *([PRODUCTION] if _released(declared) else [])]
    _check_release(declared, problems)
    made: dict[str, Publication] = {}
    places: dict[Destination, str] = {}
    for name, values in declared["publish"].items():
        place = _destination(values, folder, store, problems)
        target = _target(values, known, declared, problems)
        parts = _parts_of(_production(declared) if target == PRODUCTION else target, declared)
        model = parts[0] if parts else None
        source = _source(values, model, declared, problems)
        _check_card(values, problems)
        if place is None:
            continue
        variant = declared["variant"].get(parts[1]) if parts else None
        is_gguf = variant is not None and variant.says("gguf")
        if is_gguf and values.says("gguf"):
            what = f"gguf: {quoted(target)} is a GGUF already; remove it"
            problems.add(values.place.key("gguf"), what)
        if isinstance(place, OllamaPlace) and not is_gguf and len(values.given.get("gguf", ())) != 1:
            what = 'Ollama takes one GGUF file; write, for example, gguf = ["exact"]'
            problems.add(values.place.key("to"), what)
        for key, (kind, where) in _ONLY_FOR.items():
            if values.says(key) and not isinstance(place, kind):
                problems.add(values.place.key(key), f"{key} is only for {where}; remove it")
        if (other := places.setdefault(place, name)) != name:
            problems.add(
                values.place.key("to"), f"[publish.{other}] goes to {place} too; remove one of the two"
            )
        rest = {key: values.given[key] for key in _PLAIN if key in values.given}
        rest["datasets"] = tuple(each for each in values.given.get("datasets", ()) if each)
        rest["gguf"] = tuple(each for each in values.given.get("gguf", ()) if each)
        rest["benchmarks"] = _benchmarks(values, model, declared, suites, problems)
        text = calibrated(values, problems)
        if text is not None:
            text = replace(text, calibration=folder / text.calibration.expanduser())
        if text and not set(rest["gguf"]) & set(K_QUANTS):
            what = f"calibration is for K-quants, and gguf names none of them ({listed(K_QUANTS)})"
            problems.add(values.place.key("calibration"), what)
        made[name] = Publication(name, target, place, source=source, calibrated=text, **rest)
    return made


_PLAIN = ("private", "link", "override", "license", "base_model")


def _check_release(declared: Declared, problems: Problems) -> None:
    """A release publishes what it shows, and nothing else."""
    values = declared["release"].get("")
    for index, name in enumerate(values.given.get("publish", ()) if values else ()):
        other = declared["publish"].get(name)
        if values and other and other.get("target") not in (None, PRODUCTION):
            what = f"[publish.{name}] does not publish the release; write target = {quoted(PRODUCTION)} there"
            problems.add(values.place.key("publish", index), what)


def _released(declared: Declared) -> bool:
    values = declared["release"].get("")
    return values is not None and values.says("production")


def _destination(values: Values, folder: Path, store: Path, problems: Problems) -> Destination | None:
    text = values.get("to")
    if text is None:
        return None
    made = destination(text, folder)
    place = values.place.key("to")
    if isinstance(made, str):
        problems.add(place, f"to = {quoted(text)}: {made}")
        return None
    if isinstance(made, FolderPlace):
        inner, outer = made.path.resolve(), store.resolve()
        if inner.is_relative_to(outer) or outer.is_relative_to(inner):
            problems.add(place, f"to = {quoted(text)} overlaps the store; name another folder")
    return made


def _target(values: Values, known: list[str], declared: Declared, problems: Problems) -> str:
    """The target that is meant. After a problem the value does not matter."""
    name = values.get("target")
    if name == PRODUCTION and PRODUCTION not in known:
        what = 'target = "production", but artifacts.toml declares no release; add [release]'
        problems.add(values.place.key("target"), what)
    elif name is not None and name not in known:
        what = f"target = {quoted(name)} is not a target{suggestion(name, known)}"
        problems.add(values.place.key("target"), what)
    model = values.get("model")
    if name is not None or model is None:
        return str(name)
    if EXACT not in values.given.get("gguf", ()):
        return f"{model}_{_unquantized(model, declared)}"
    released = _parts_of(_production(declared), declared)
    if released and released[0] == model:
        return PRODUCTION
    what = f'"exact" is made of a target, and no target of {quoted(model)} is released; name one in `target`'
    problems.add(values.place.key("gguf"), what)
    return ""


def _source(values: Values, own: str | None, declared: Declared, problems: Problems) -> str | None:
    """The unquantized target that GGUF files are made of. None where none is needed.

    own: the model of the target that is published.
    """
    kinds = values.given.get("gguf", ())
    for index, kind in enumerate(kinds):
        if kind is not None and kind not in GGUF_TYPES:
            what = f"gguf: {quoted(kind)} cannot be written{suggestion(kind, GGUF_TYPES)}"
            problems.add(values.place.key("gguf", index), what)
    if all(kind == EXACT for kind in kinds):
        return None
    model = values.get("model") or own
    if model is None or model not in declared["model"]:
        return None
    variant = _unquantized(model, declared)
    if variant is None:
        what = f"gguf is made of unquantized weights, and model {quoted(model)} has no such variant"
        problems.add(
            values.place.key("gguf"), f'{what}; declare [variant.f16] dtype = "float16", and list it'
        )
    return f"{model}_{variant}"


def _production(declared: Declared) -> str:
    values = declared["release"].get("")
    return str(values.get("production")) if values else ""


def _parts_of(target: str, declared: Declared) -> tuple[str, str] | None:
    """The model and the variant that a target is named after."""
    for model, values in declared["model"].items():
        for variant in values.given.get("variants", ()):
            if f"{model}_{variant}" == target:
                return model, variant
    return None


_SMALLER = ("bits", "mode", "recipe", "method", "target", "experts", "gguf")


def _unquantized(model: str, declared: Declared) -> str | None:
    """The first variant of a model that is not quantized, and has all experts."""
    for name in declared["model"][model].given.get("variants", ()) if model in declared["model"] else ():
        variant = declared["variant"].get(name)
        if variant and not any(variant.says(key) for key in _SMALLER):
            return str(name)
    return None


def _benchmarks(
    values: Values, model: str | None, declared: Declared, suites: Mapping[str, Suite], problems: Problems
) -> tuple[Benchmark, ...]:
    """Which figures count for a benchmark. After a problem the value does not matter."""
    measured = declared["model"][model].given.get("suites", ()) if model else ()
    found = []
    for label, text in values.given.get("benchmarks", {}).items():
        place = values.place.key("benchmarks", label)
        metric = metric_of(label, [each for each in measured if each is not None], suites)
        dataset, _, task = text.partition(":")
        if not isinstance(metric, Metric):
            problems.add(place, metric)
        elif not task or not is_repository(dataset):
            what = f"benchmarks: {quoted(text)} is not a task of a dataset; write OWNER/DATASET:TASK"
            problems.add(place, what)
        else:
            found.append(Benchmark(metric.suite, metric.name, dataset, task))
    return tuple(found)


def _check_card(values: Values, problems: Problems) -> None:
    """Hubs link these names to their pages, so each must be OWNER/NAME."""
    named: list[tuple[str, int | None, str | None]] = [("base_model", None, values.get("base_model"))]
    named += [("datasets", index, each) for index, each in enumerate(values.given.get("datasets", ()))]
    for key, index, text in named:
        if text is not None and not is_repository(text):
            place = values.place.key(key) if index is None else values.place.key(key, index)
            problems.add(place, f"{key}: {quoted(text)} is not the name of a repository; write OWNER/NAME")
