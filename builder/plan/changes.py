"""Says why a target would be built again: which input or setting changed, from what to what. Pure.

The manifest says what the former build was made of. The plan says what the target would be made of now.
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
    """One input or setting, before and now. None: absent. `is_digest`: the values are hashes of content."""

    what: str
    before: str | None
    now: str | None
    is_digest: bool = False

    @property
    def text(self) -> str:
        """The change in a few words: `adapter changed`, `group_size 64 -> 32`."""
        if self.is_digest:
            return f"{self.what} changed"
        return f"{self.what} {self.before or 'unset'} -> {self.now or 'unset'}"


@dataclass(frozen=True)
class Why:
    """The answer for one target.

    `state` and `reason` come from `builder.project.state`. `changes` compares with the former build, and is
    empty without a former build. A build would make `blocks`, out of `total` blocks, and write `nbytes`
    bytes. `former` is the time of the former build (RFC 3339), or None.
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
    """What changed since `former`, and the cost of `missing`, which are the actions without a usable record.

    `toolchain` names the versions in use, if they are part of the keys.
    """
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

    `toolchain` names the versions in use, if they are part of the keys.
    """
    found = []
    inputs, settings = inputs_of(plan), settings_of(plan)
    for name in sorted({*inputs, *old.inputs}):
        before, now = _text(old.inputs, name), _text(inputs, name)
        if before != now:
            digest = name.endswith("_digest") and None not in (before, now)
            found.append(Change(name.removesuffix("_digest"), before, now, is_digest=digest))
    # Another base or adapter has other bytes, so that its digest differs says nothing more.
    if any(not c.is_digest and c.what in ("base", "adapter") for c in found):
        found = [c for c in found if not c.is_digest and not _is_hash(c.before or c.now)]
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
    """All changes as one clause."""
    return ", ".join(change.text for change in found) or "the way blocks are made changed"


def inputs_of(plan: TargetPlan) -> Mapping[str, str]:
    """What a manifest records about the inputs of a target."""
    inputs = {"base": plan.target.model.base, "base_digest": str(plan.base.weights)}
    if plan.adapter is not None and plan.target.model.adapter is not None:
        inputs |= {"adapter": plan.target.model.adapter, "adapter_digest": str(plan.adapter.digest)}
    if plan.calibration is not None:
        inputs["calibration_digest"] = str(plan.calibration)
    return inputs


def settings_of(plan: TargetPlan) -> Mapping[str, str | int | bool]:
    """What a manifest records about the settings of a target."""
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
    """A value for a person: the first 12 digits of a hash, "unset" for None, other values as they are."""
    if value is None:
        return "unset"
    return value[:_SHORT] if _is_hash(value) else value


def _is_hash(value: str | None) -> bool:
    return value is not None and len(value) == 64 and all(c in "0123456789abcdef" for c in value)


def _text(values: Mapping[str, object], name: str) -> str | None:
    value = values.get(name)
    return None if value is None else str(value)
