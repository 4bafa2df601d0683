"""The state machine of tests/soak/machine.py, for a number of steps. It finds faults that are put back.

MODELKILN_STEPS: how many steps. MODELKILN_SEED repeats a run. MODELKILN_SHRINK=0 shows a failure at once, and
not its shortest form some minutes later.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from builder.build import opening, prepare, reading
from builder.plan import planning
from builder.plan.types import TargetPlan
from builder.project import watch
from builder.project.project import Project
from builder.store import blobs, records, views
from builder.store.layout import Store
from builder.store.types import Manifest
from tests.soak.machine import Person
from tests.soak.person import quick
from tests.soak.world import Fresh, make_pool

pytestmark = pytest.mark.slow
STEPS = int(os.environ.get("MODELKILN_STEPS") or 120)
LIFE = 50  # steps
QUICK = os.environ.get("MODELKILN_SHRINK") == "0"


@pytest.fixture
def person(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Person]]:
    """A person whose lives begin in an empty folder. Steps of learned quantizers take milliseconds."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    pool = make_pool(tmp_path / "pool")
    (tmp_path / "lives").mkdir()
    shared = {"root": tmp_path / "lives", "pool": pool, "fresh": Fresh(tmp_path, pool), "counts": {}}
    with quick():
        yield type("Person", (Person,), shared)


def live(person: type[Person], number: int, lives: int, *, shrink: bool) -> None:
    """Some lives, drawn by a number: the same number draws the same lives."""
    how = settings(
        max_examples=lives,
        stateful_step_count=LIFE,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink) if shrink else (Phase.generate,),
        print_blob=True,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(seed(number)(person), settings=how)


def test_a_person_at_work(person: type[Person], seed: int) -> None:
    began, number = time.monotonic(), seed
    while person.counts.get("steps", 0) < STEPS:
        print(f"MODELKILN_SEED={number} repeats from here")
        live(person, number, 5, shrink=not QUICK)
        number += 1
    took = time.monotonic() - began
    print(f"{person.counts['steps']} steps in {took:.0f} s, {len(person.fresh.known)} different contents")
    for what, count in sorted(person.counts.items(), key=lambda item: -item[1]):
        print(f"{count:6} {what}")


# -- faults that were there, put back ------------------------------------------------------------------------


def import_by_name(patch: pytest.MonkeyPatch) -> None:
    """The first fault: an import was a view with the base's name, which only a new import replaced."""

    def show_import(store: Store, manifest: Manifest) -> Path:
        folder = store.bases / manifest.name
        views.materialize(store, folder, manifest)
        return folder

    def base_folder(project: Project, target: TargetPlan) -> Path:
        base = project.spec.bases[target.target.model.base]
        if target.base.identity.imported is None:
            return project.sources.base_directory(base)
        manifest = records.read_manifest(project.store, target.base.identity.imported)
        assert manifest is not None
        folder = project.store.bases / base.name
        if not folder.exists():
            views.materialize(project.store, folder, manifest)
        return folder

    patch.setattr(prepare, "show_import", show_import)
    patch.setattr(watch, "base_folder", base_folder)
    patch.setattr(opening, "base_folder", base_folder)
    patch.setattr(reading, "base_folder", base_folder)


def without(function: str, part: str) -> Callable[[pytest.MonkeyPatch], None]:
    """A key that lacks something that can change the bytes."""

    def put_back(patch: pytest.MonkeyPatch) -> None:
        parts_of: Callable[..., Mapping[str, object]] = getattr(planning, function)

        def fewer(*arguments: Any) -> Mapping[str, object]:
            return {name: value for name, value in parts_of(*arguments).items() if name != part}

        patch.setattr(planning, function, fewer)

    return put_back


def a_view_of_its_key(patch: pytest.MonkeyPatch) -> None:
    """A view was what it said in its first lines."""

    def is_current(_: object, folder: Path, manifest: Manifest) -> bool:
        return views.current_key(folder) == manifest.key

    patch.setattr(views, "is_current", is_current)


def a_blob_of_its_name(patch: pytest.MonkeyPatch) -> None:
    """A blob was whatever lies there."""
    patch.setattr(blobs, "_rehash", lambda *_: True)


DIFFERS = "differ from a fresh build"
FAULTS: Mapping[str, tuple[Callable[[pytest.MonkeyPatch], None], str]] = {
    "import by name": (import_by_name, DIFFERS),
    "no dtype_asked in config keys": (without("config_parts", "dtype_asked"), DIFFERS),
    "no slices in block keys": (without("block_parts", "slices_digest"), DIFFERS),
    "no base in block keys": (without("block_parts", "base_digest"), DIFFERS),
    "a view of its key": (a_view_of_its_key, DIFFERS),
    "a blob of its name": (a_blob_of_its_name, ""),
}
MOST = 1500  # steps in which a fault must show
SHOWN = ("import by name", "no dtype_asked in config keys")  # the others where MODELKILN_STEPS asks for more


@pytest.mark.parametrize("fault", FAULTS if "MODELKILN_STEPS" in os.environ else SHOWN)
def test_it_finds(person: type[Person], fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not drawn anew in each run: how long it takes is chance, and a good test must not fail by chance."""
    put_back, says = FAULTS[fault]
    put_back(monkeypatch)
    person.children = False  # they would not have the fault
    began, number = time.monotonic(), int(os.environ.get("MODELKILN_SEED") or 7)
    with pytest.raises(AssertionError) as found:
        while person.counts.get("steps", 0) < MOST:
            live(person, number, 5, shrink=False)
            number += 1
    assert says in str(found.value), found.value
    print(f"{fault}: found after {person.counts['steps']} steps, {time.monotonic() - began:.0f} s")
