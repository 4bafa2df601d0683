"""artifacts.lock: what everything was on one machine, so that another can check that it has the same inputs.

A TOML file that a person commits: the digests of bases and adapters, the key of each target and, once built,
the digest of its files.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from builder.build.prepare import prepare_target
from builder.console.events import Emit
from builder.console.words import shown
from builder.errors import BuildError
from builder.keys import make_key
from builder.plan.types import TargetPlan, Unresolved
from builder.project.project import Project
from builder.spec.types import Adapter
from builder.store import records
from builder.store.types import Manifest

FORMAT = 1
NAME = "artifacts.lock"
_HEADER = "# What artifacts.toml was built from. Written by `builder lock`, checked by `doit --locked`.\n"


class LockInvalid(BuildError):
    """{path}: {what}."""

    exit_code = 3
    hint = "`builder lock` writes a new one."


class LockDiffers(BuildError):
    """{path} does not match: {what}."""

    exit_code = 3
    hint = "Get the same inputs, or accept the inputs of this machine with `builder lock`."


@dataclass(frozen=True)
class Difference:
    """One entry: `base.x`, `adapter.y`, `target.z`, `target.z files`. `locked` None: not in the lock; `here`
    None: not declared."""

    what: str
    locked: str | None
    here: str | None


Lock = Mapping[str, Mapping[str, Mapping[str, str]]]  # base, adapter, target -> name -> key or digest
_IDENTITY = {"base": "digest", "adapter": "digest", "target": "key"}  # what no entry does without


def lock_of(project: Project, emit: Emit) -> Lock:
    """Everything that is declared, as it is now. Reads sources that have not been read yet.

    Raises what preparing a source raises, and PlanError: what cannot be made cannot be locked.
    """
    for target in project.spec.targets:
        if isinstance(project.plan.targets[target.name], Unresolved):
            prepare_target(project, target, emit)
    made: dict[str, dict[str, dict[str, str]]] = {"base": {}, "adapter": {}, "target": {}}
    for plan in project.plan.resolved():
        model = plan.target.model
        made["base"][model.base] = {"digest": str(plan.base.weights)}
        if plan.adapter is not None and model.adapter is not None:
            made["adapter"][model.adapter] = {
                "digest": str(plan.adapter.digest),
                **_training(project.spec.adapters[model.adapter]),
            }
        made["target"][plan.name] = {"key": str(plan.key), **_files(project, plan)}
    return made


def _training(adapter: Adapter) -> dict[str, str]:
    """Every setting that a trained adapter is made with, given or not."""
    if adapter.train is None:
        return {}
    return {"train": ", ".join(f"{name} = {shown(value)}" for name, value in adapter.train.settings.items())}


def _files(project: Project, plan: TargetPlan) -> dict[str, str]:
    manifest = records.read_manifest(project.store, plan.key)
    if manifest is None:
        return {}
    return {"files": files_digest(manifest)}


def files_digest(manifest: Manifest) -> str:
    """One digest for all files of a target."""
    return make_key("files/1", [[entry.name, entry.blob.digest] for entry in manifest.files])


def with_outputs(here: Lock, former: Lock) -> Lock:
    """`here`, with the outputs that `former` recorded of the same keys where they are not built here."""
    targets = {}
    for name, values in here["target"].items():
        before = former["target"].get(name, {})
        same = before.get("key") == values["key"] and "files" not in values
        targets[name] = {**values, "files": before["files"]} if same and "files" in before else values
    return {**here, "target": targets}


def to_text(lock: Lock) -> str:
    tables = {kind: {name: dict(values) for name, values in sorted(lock[kind].items())} for kind in lock}
    return _HEADER + tomli_w.dumps({"format": FORMAT, **tables})


def read(path: Path) -> Lock:
    """Raises LockInvalid."""
    try:
        data: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise LockInvalid(path=path, what="does not exist") from None
    except (OSError, ValueError) as error:
        raise LockInvalid(path=path, what=f"cannot be read ({error})") from None
    if data.get("format") != FORMAT:
        raise LockInvalid(path=path, what=f"is not a lock of format {FORMAT}")
    kinds = {kind: data.get(kind, {}) for kind in _IDENTITY}
    for kind, names in kinds.items():
        if not isinstance(names, dict):
            raise LockInvalid(path=path, what=f"{kind} is not a table")
        for name, values in names.items():
            _check_entry(path, kind, name, values)
    return kinds


def _check_entry(path: Path, kind: str, name: str, values: object) -> None:
    """Raises LockInvalid: an entry without a digest, or with something else, would lock nothing."""
    if not isinstance(values, dict):
        raise LockInvalid(path=path, what=f"{kind}.{name} is not a table")
    if _IDENTITY[kind] not in values:
        raise LockInvalid(path=path, what=f"{kind}.{name} has no {_IDENTITY[kind]}")
    for field, value in values.items():
        if not isinstance(value, str):
            raise LockInvalid(path=path, what=f"{kind}.{name}.{field} is not a string")


def differences(locked: Lock, here: Lock) -> tuple[Difference, ...]:
    """What is not as it was, or not in the lock. Files only where both sides have built."""
    found = []
    for kind, identity in _IDENTITY.items():
        for name, values in sorted(locked[kind].items()):
            now = here[kind].get(name, {})
            for field, value in sorted(values.items()):
                if field == "files" and field not in now:
                    continue
                if now.get(field) != value:
                    suffix = " files" if field == "files" else ""
                    found.append(Difference(f"{kind}.{name}{suffix}", value, now.get(field)))
        for name in sorted(here[kind].keys() - locked[kind].keys()):
            found.append(Difference(f"{kind}.{name}", None, here[kind][name][identity]))
    return tuple(found)


def check(project: Project, emit: Emit) -> None:
    """Compares inputs and keys; outputs may differ by device.

    Raises LockDiffers, LockInvalid, and what lock_of raises.
    """
    path = project.spec.file.with_name(NAME)
    locked = read(path)
    found = [d for d in differences(locked, lock_of(project, emit)) if not d.what.endswith(" files")]
    if found:
        named = ", ".join(d.what + (" is not in it" if d.locked is None else "") for d in found[:5])
        more = f" and {len(found) - 5} more" if len(found) > 5 else ""
        raise LockDiffers(path=NAME, what=f"{named}{more}")
