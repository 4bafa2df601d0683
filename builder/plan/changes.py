"""Says why a target would be built again: which input or setting changed, from what to what. Pure.

The manifest says what the former build was made of. The plan says what the target would be made of now.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from builder.gguf import layout
from builder.plan.types import Action, TargetPlan
from builder.spec.quantizers import METHOD_SETTINGS, NEAREST
from builder.store.types import Manifest

# Names: recorded for a reader, in no key.
_LABELS = frozenset({"base", "adapter", "variant", "source", "start"})
_DERIVED = frozenset(
    {
        "slices_digest",
        "tensors_digest",
        "quantization_digest",
        "paths_digest",
        "vocabulary_digest",
        "generation_digest",
        "before_digest",
        "outside_digest",
        "prompts_digest",
        "dtype_asked",
        "experts_digest",
        "start_digest",
    }
)
_LAST = frozenset({"before_digest"})  # follows from any other
_SHOWN = {
    "config_digest": "config.json",
    "generation_digest": "generation_config.json",
    "vocabulary_digest": "tokenizer",
    "calibration_digest": "calibration",
    "calibration_format": "calibration format",
    "prompts_digest": "chat template or tokenizer",
    "before_digest": "what comes before some blocks",
    "outside_digest": "what the adapter changes outside of the layers",
    "rounding": "rounding",
    "tensors_digest": "names, types or shapes of tensors",
    "quantization_digest": "quantization of some paths",
    "paths_digest": "quantization of some paths",
    "experts_digest": "which experts are kept",
    "start_digest": "what its codes are taken from",
    "repairs": "what mlx-lm would misread of the base",
    "slices_digest": "what the adapter changes",
}
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
    bytes. `former` is the time of the former build (RFC 3339), or None. `bits` says why the target keeps its
    experts and why each weight has its bits, where it leaves experts out or asks for a size. `remote` has
    `fetched` of the blocks, `fetch` bytes of the target.
    """

    target: str
    state: str
    reason: str
    changes: tuple[Change, ...]
    blocks: tuple[str, ...]
    total: int
    nbytes: int
    former: str | None
    bits: tuple[str, ...] = ()
    remote: str = ""
    fetch: int = 0
    fetched: int = 0

    @property
    def reused(self) -> int:
        return self.total - len(self.blocks)


def explain(
    plan: TargetPlan,
    state: str,
    reason: str,
    former: Manifest | None,
    missing: Sequence[Action],
) -> Why:
    """What changed since `former`, and the cost of `missing`, which are the actions without a usable record.

    `toolchain` names the versions in use, if they are part of the keys.
    """
    known = former is not None and former.key != plan.key
    return Why(
        plan.name,
        state,
        reason,
        changes(plan, former) if known and former else (),
        tuple(action.block for action in missing),
        len(plan.actions),
        sum(action.size for action in missing),
        former.created if former else None,
    )


def changes(plan: TargetPlan, old: Manifest) -> tuple[Change, ...]:
    """Everything that differs between a former build and what would be built now, and can be in a key.

    Names that a person gave are in no key: a new name is said only where its content changed too. What
    follows from something else (the tensors, the quantization of each path) is said only where nothing else
    explains it.
    """
    inputs, settings = inputs_of(plan), settings_of(plan)
    found = []
    for label in ("base", "adapter"):
        before, now = _text(old.inputs, f"{label}_digest"), _text(inputs, f"{label}_digest")
        names = _text(old.inputs, label), _text(inputs, label)
        if before != now and names[0] != names[1]:
            found.append(Change(label, *names))
        elif before != now:
            found.append(Change(label, before, now, is_digest=None not in (before, now)))
    for name in sorted({*settings, *old.settings} - _LABELS):
        before, now = _text(old.settings, name), _text(settings, name)
        follows = name == "dtype_asked" and any(change.what == "dtype" for change in found)
        if before != now and not follows:
            found.append(Change(name, before, now))
    former = {entry.name: entry.blob.digest for entry in old.files}
    copied = {entry.name: entry.blob.digest for entry in plan.base.aux}
    made = {action.file for action in plan.actions} | {"config.json", "model.safetensors.index.json"}
    for name in sorted(copied.keys() | {n for n in former if n not in made and not n.startswith("model")}):
        if former.get(name) != copied.get(name):
            both = name in former and name in copied
            found.append(Change(name, former.get(name), copied.get(name), is_digest=both))
    left = {*inputs, *old.inputs} - _LABELS - {"base_digest", "adapter_digest"}
    for group in (left - _DERIVED, left & _DERIVED - _LAST, left & _LAST):
        explained = bool(found)
        for name in sorted(group):
            before, now = _text(old.inputs, name), _text(inputs, name)
            what = _SHOWN.get(name, name.removesuffix("_digest"))
            said = (explained and name in _DERIVED) or any(change.what == what for change in found)
            if before != now and not said:
                digest = name.endswith("_digest") and None not in (before, now)
                found.append(Change(what, before, now, is_digest=digest))
    return tuple(found)


def summary(found: Sequence[Change]) -> str:
    """All changes as one clause."""
    return ", ".join(change.text for change in found) or "the way blocks are made changed"


def inputs_of(plan: TargetPlan) -> Mapping[str, str]:
    """What a manifest records of a target's inputs: everything that is in its keys, and the names of its
    sources.
    """
    labels = {"base": plan.target.model.base}
    if plan.adapter is not None and plan.target.model.adapter is not None:
        labels["adapter"] = plan.target.model.adapter
    return {**labels, **plan.inputs}


def settings_of(plan: TargetPlan) -> Mapping[str, str | int | bool]:
    """What a manifest records about the settings of a target."""
    variant = plan.target.variant
    settings: dict[str, str | int | bool] = {"variant": variant.name, "dtype": plan.dtype or "as the base"}
    if variant.dtype is not None:
        settings["dtype_asked"] = variant.dtype
    if variant.quantization is not None:
        how = variant.quantization
        settings |= {"bits": how.bits, "group_size": how.group_size, "mode": how.mode}
    if variant.recipe is not None:
        settings |= {"recipe": variant.recipe, "group_size": variant.group_size}
    if (learned := variant.learned) is not None:
        used = {"method", "source", "start", *METHOD_SETTINGS[learned.method]}
        settings |= {k: str(v) for k, v in asdict(learned).items() if k in used and v is not None}
    if (text := variant.text) is not None:
        settings |= {"samples": text.samples, "sequence_length": text.sequence_length}
        settings |= {"rounding": NEAREST} if text.nearest else {}
    if variant.gguf is not None:
        types = layout.shares(layout.mix(tensor for action in plan.actions for tensor in action.tensors))
        of = {"of": variant.gguf.of} if variant.gguf.of else {}
        return settings | {"gguf": variant.gguf.type, **of, "types": types}
    if variant.experts is not None:
        settings |= {"experts": str(variant.experts.share), "criterion": variant.experts.criterion}
    if variant.goal is not None:
        settings |= {"target": str(variant.goal), "group_size": variant.group_size}
        settings.pop("bits", None)
        return settings
    for number, override in enumerate(variant.overrides, start=1):
        how_text = "as it is"
        if (q := override.quantization) is not None:
            how_text = f"{q.bits} bits, group {q.group_size}, {q.mode}"
        settings[f"override {override.pattern}"] = f"{number}: {how_text}"
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
