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

from builder.errors import BuildError
from builder.keys import make_key
from builder.plan import TargetPlan, Unresolved
from builder.prepare import prepare_adapter, prepare_base
from builder.progress import Emit
from builder.project import Project
from builder.store import records

FORMAT = 1
NAME = "artifacts.lock"
_HEADER = "# What artifacts.toml was built from. Written by `builder lock`, checked by `doit --locked`.\n"


class LockInvalid(BuildError):
    """{path}: {what}."""

    exit_code = 3
    hint = "`builder lock` writes it anew."


class LockDiffers(BuildError):
    """{path} does not agree: {what}."""

    exit_code = 3
    hint = "Get the same inputs, or accept these with `builder lock`."


@dataclass(frozen=True)
class Difference:
    """One entry: `base.x`, `adapter.y`, `target.z`, `target.z files`; None: not there."""

    what: str
    locked: str | None
    here: str | None


Lock = Mapping[str, Mapping[str, Mapping[str, str]]]  # base, adapter, target -> name -> key or digest


def lock_of(project: Project) -> Lock:
    """What is known now. Sources that have not been read yet are left out. Raises BuildError."""
    made: dict[str, dict[str, dict[str, str]]] = {"base": {}, "adapter": {}, "target": {}}
    for plan in project.plan.resolved():
        model = plan.target.model
        made["base"][model.base] = {"digest": str(plan.base.weights)}
        if plan.adapter is not None and model.adapter is not None:
            made["adapter"][model.adapter] = {"digest": str(plan.adapter.digest)}
        made["target"][plan.name] = {"key": str(plan.key), **_files(project, plan)}
    return made


def _files(project: Project, plan: TargetPlan) -> dict[str, str]:
    manifest = records.read_manifest(project.store, plan.key)
    if manifest is None:
        return {}
    return {"files": make_key("files/1", [[entry.name, entry.blob.digest] for entry in manifest.files])}


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
    kinds = {kind: data.get(kind, {}) for kind in ("base", "adapter", "target")}
    tables = [table for names in kinds.values() if isinstance(names, dict) for table in names.values()]
    if data.get("format") != FORMAT or not all(isinstance(table, dict) for table in tables):
        raise LockInvalid(path=path, what=f"is not a lock of format {FORMAT}")
    return kinds


def differences(locked: Lock, here: Lock) -> tuple[Difference, ...]:
    """What is not as it was. Files only where both sides have built; new targets are none."""
    found = []
    for kind in ("base", "adapter", "target"):
        for name, values in sorted(locked[kind].items()):
            now = here[kind].get(name, {})
            for field, value in sorted(values.items()):
                if field == "files" and field not in now:
                    continue
                if now.get(field) != value:
                    suffix = " files" if field == "files" else ""
                    found.append(Difference(f"{kind}.{name}{suffix}", value, now.get(field)))
    return tuple(found)


def check(project: Project, emit: Emit) -> None:
    """Reads sources that have not been read yet, and compares inputs and keys; outputs may differ by device.

    Raises LockDiffers, LockInvalid, and what preparing a source raises.
    """
    path = project.spec.file.with_name(NAME)
    locked = read(path)
    for target in project.spec.targets:
        if isinstance(project.plan.targets[target.name], Unresolved):
            prepare_base(project, project.spec.bases[target.model.base], emit)
            if target.model.adapter:
                prepare_adapter(project, project.spec.adapters[target.model.adapter], emit)
    found = [d for d in differences(locked, lock_of(project)) if not d.what.endswith(" files")]
    if found:
        named = ", ".join(difference.what for difference in found[:5])
        more = f" and {len(found) - 5} more" if len(found) > 5 else ""
        raise LockDiffers(path=NAME, what=f"{named}{more}")
