"""Why a target would be built again: which input or setting changed, from what to what. Pure.

The manifest of the former build says what it was made of, the plan says what it would be made of now.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from builder.plan.types import Action, TargetPlan
from builder.store.types import Manifest

_SHORT = 12  # hex digits of a digest that are shown
_NUMBERED = re.compile(r"(.*\.)(\d+)")


@dataclass(frozen=True)
class Change:
    """One input or setting, before and now; None: it was not there. `is_digest`: hashes of content."""

    what: str
    before: str | None
    now: str | None
    is_digest: bool = False

    @property
    def text(self) -> str:
        """In a few words: `adapter changed`, `group_size 64 -> 32`."""
        if self.is_digest:
            return f"{self.what} changed"
        return f"{self.what} {self.before or 'unset'} -> {self.now or 'unset'}"


@dataclass(frozen=True)
class Why:
    """The answer for one target.

    `state` and `reason` as builder.project.state says, `changes` against the former build (none if there was
    none), `blocks` what a build would make, of `total`, `nbytes` what it would write.
    """

    target: str
    state: str
    reason: str
    changes: tuple[Change, ...]
    blocks: tuple[str, ...]
    total: int
    nbytes: int
    former: str | None

    @property
    def reused(self) -> int:
        return self.total - len(self.blocks)


def explain(
    plan: TargetPlan,
    state: str,
    reason: str,
    former: Manifest | None,
    missing: Sequence[Action],
    toolchain: str = "",
) -> Why:
    """What changed since `former`, and what `missing` (the actions without a usable record) will cost."""
    known = former is not None and former.key != plan.key
    return Why(
        plan.name,
        state,
        reason,
        changes(plan, former, toolchain) if known and former else (),
        tuple(action.block for action in missing),
        len(plan.actions),
        sum(action.size for action in missing),
        former.created if former else None,
    )


def changes(plan: TargetPlan, old: Manifest, toolchain: str = "") -> tuple[Change, ...]:
    """Everything that differs between a former build and what would be built now.

    `toolchain`: the versions now in use, if they are part of the keys.
    """
    found = []
    inputs, settings = inputs_of(plan), settings_of(plan)
    for name in sorted({*inputs, *old.inputs}):
        before, now = _text(old.inputs, name), _text(inputs, name)
        if before != now:
            digest = name.endswith("_digest") and None not in (before, now)
            found.append(Change(name.removesuffix("_digest"), before, now, is_digest=digest))
    others = {c.what for c in found if not _is_hash(c.before or c.now)}  # another one: of course other bytes
    found = [c for c in found if c.what not in others or not _is_hash(c.before or c.now)]
    for name in sorted({*settings, *old.settings}):
        before, now = _text(old.settings, name), _text(settings, name)
        if before != now:
            found.append(Change(name, before, now))
    former = {entry.name: entry.blob.digest for entry in old.files}
    copied = {entry.name: entry.blob.digest for entry in plan.base.aux}
    made = {action.file for action in plan.actions} | {"config.json", "model.safetensors.index.json"}
    for name in sorted(copied.keys() | {n for n in former if n not in made and not n.startswith("model")}):
        if former.get(name) != copied.get(name):
            both = name in former and name in copied
            found.append(Change(name, former.get(name), copied.get(name), is_digest=both))
    before = _text(old.toolchain, "toolchain")
    if toolchain and before and toolchain != before:
        found.append(Change("toolchain", before, toolchain))
    return tuple(found)


def summary(found: Sequence[Change]) -> str:
    """All changes in one clause."""
    return ", ".join(change.text for change in found) or "the way blocks are made changed"


def inputs_of(plan: TargetPlan) -> Mapping[str, str]:
    """What a manifest records of a target's inputs."""
    inputs = {"base": plan.target.model.base, "base_digest": str(plan.base.weights)}
    if plan.adapter is not None and plan.target.model.adapter is not None:
        inputs |= {"adapter": plan.target.model.adapter, "adapter_digest": str(plan.adapter.digest)}
    if plan.calibration is not None:
        inputs["calibration_digest"] = str(plan.calibration)
    return inputs


def settings_of(plan: TargetPlan) -> Mapping[str, str | int | bool]:
    """What a manifest records of a target's settings."""
    variant = plan.target.variant
    settings: dict[str, str | int | bool] = {"variant": variant.name, "dtype": plan.dtype or "as the base"}
    if variant.quantization is not None:
        how = variant.quantization
        settings |= {"bits": how.bits, "group_size": how.group_size, "mode": how.mode}
    if variant.recipe is not None:
        settings |= {"recipe": variant.recipe, "group_size": variant.group_size}
    if (learned := variant.learned) is not None:
        settings |= {k: str(v) for k, v in asdict(learned).items() if k != "calibration"}
    for override in variant.overrides:
        how_text = "as it is"
        if (q := override.quantization) is not None:
            how_text = f"{q.bits} bits, group {q.group_size}, {q.mode}"
        settings[f"override {override.pattern}"] = how_text
    return settings


def block_ranges(blocks: Sequence[str]) -> tuple[str, ...]:
    """Block names with runs of numbers joined.

    >>> block_ranges(["model.embed_tokens", "model.layers.2", "model.layers.3", "model.layers.7"])
    ('model.embed_tokens', 'model.layers.2-3', 'model.layers.7')
    """
    out: list[str] = []
    stem, first, last = "", 0, 0
    for name in [*blocks, ""]:
        match = _NUMBERED.fullmatch(name)
        if stem and match and match[1] == stem and int(match[2]) == last + 1:
            last += 1
            continue
        if stem:
            out.append(f"{stem}{first}-{last}" if last > first else f"{stem}{first}")
            stem = ""
        if match:
            stem, first, last = match[1], int(match[2]), int(match[2])
        elif name:
            out.append(name)
    return tuple(out)


def shortened(value: str | None) -> str:
    """A value for a person: hashes cut, absence said."""
    if value is None:
        return "unset"
    return value[:_SHORT] if _is_hash(value) else value


def _is_hash(value: str | None) -> bool:
    return value is not None and len(value) == 64 and all(c in "0123456789abcdef" for c in value)


def _text(values: Mapping[str, object], name: str) -> str | None:
    value = values.get(name)
    return None if value is None else str(value)
