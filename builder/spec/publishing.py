"""Parses [publish.NAME], after `builder.spec.shape` has checked its types."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from builder.console.words import quoted, suggestion
from builder.spec.destinations import (
    Destination,
    FolderPlace,
    HubPlace,
    Publication,
    destination,
    is_repository,
)
from builder.spec.problems import Problems
from builder.spec.shape import Declared, Values

PRODUCTION = "production"
_ONLY_FOR: dict[str, tuple[type[Destination], str]] = {
    "private": (HubPlace, "hf://"),
    "link": (FolderPlace, "a folder or lmstudio://"),
}


def publications(
    declared: Declared, targets: Iterable[str], folder: Path, store: Path, problems: Problems
) -> dict[str, Publication]:
    """What every table declares. After a problem the values do not matter, because the parse fails."""
    known = [*targets, *([PRODUCTION] if _released(declared) else [])]
    made: dict[str, Publication] = {}
    places: dict[Destination, str] = {}
    for name, values in declared["publish"].items():
        place = _destination(values, folder, store, problems)
        _check_target(values, known, problems)
        _check_card(values, problems)
        if place is None:
            continue
        for key, (kind, where) in _ONLY_FOR.items():
            if values.says(key) and not isinstance(place, kind):
                problems.add(values.place.key(key), f"{key} is only for {where}; remove it")
        if (other := places.setdefault(place, name)) != name:
            problems.add(
                values.place.key("to"), f"[publish.{other}] goes to {place} too; remove one of the two"
            )
        rest = {key: values.given[key] for key in _PLAIN if key in values.given}
        datasets = tuple(each for each in values.given.get("datasets", ()) if each)
        made[name] = Publication(name, str(values.get("target")), place, datasets=datasets, **rest)
    return made


_PLAIN = ("private", "link", "override", "license", "base_model")


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


def _check_target(values: Values, known: list[str], problems: Problems) -> None:
    name = values.get("target")
    if name is None or name in known:
        return
    if name == PRODUCTION:
        what = 'target = "production", but artifacts.toml declares no release; add [release]'
    else:
        what = f"target = {quoted(name)} is not a target{suggestion(name, known)}"
    problems.add(values.place.key("target"), what)


def _check_card(values: Values, problems: Problems) -> None:
    """Hubs link these names to their pages, so each must be OWNER/NAME."""
    named: list[tuple[str, int | None, str | None]] = [("base_model", None, values.get("base_model"))]
    named += [("datasets", index, each) for index, each in enumerate(values.given.get("datasets", ()))]
    for key, index, text in named:
        if text is not None and not is_repository(text):
            place = values.place.key(key) if index is None else values.place.key(key, index)
            problems.add(place, f"{key}: {quoted(text)} is not the name of a repository; write OWNER/NAME")
