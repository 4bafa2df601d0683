"""Settings of rotary embeddings that mlx-lm does not read, in `rope_parameters` or the older `rope_scaling`.

Whether mlx-lm reads a setting is found out, not looked up: the model is built (without weights) with the
setting and with another value of it. Where nothing of the model changes, mlx-lm does not read the setting.
So every model type is judged by the same rule. What can be said under the older names (rope_theta,
rope_scaling, ...) is put into the config that is loaded and written. The rest is refused by name. So is a
`rope_scaling` that mlx-lm does not read.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, TypeGuard

import mlx.core as mx
import mlx.nn as nn

from builder.errors import BuildError

KEY, OLDER = "rope_parameters", "rope_scaling"
_FULL, _SLIDING = "full_attention", "sliding_attention"
_LOCAL = ("rope_local_base_freq", "rope_local_theta", "swa_rope_theta")
_BASES = ("rope_theta", "rotary_emb_base", "rope_embedding_base", "rope_freq_constant")
_PARTS = ("partial_rotary_factor", "rotary_pct")
_PLAIN = ("default", "mrope", None)
_HARMLESS = (*_PLAIN, "dynamic")  # `dynamic` changes only positions beyond those of the training
_NOT_SCALING = ("rope_theta", "partial_rotary_factor")

Settings = dict[str, Any]
Print = tuple[Any, ...]  # what a rotary embedding is made of


class UnreadSettings(BuildError):
    """{path}: mlx-lm's {model_type} does not read {key} = {value} in config.json."""

    exit_code = 2
    hint = "The model would see other positions than it was trained with. Use another base."


@dataclass(frozen=True)
class _Probe:
    """Builds the model from settings, to see what its rotary embeddings become."""

    classes: Callable[[Settings], tuple[Any, Any]]

    def __call__(self, config: Settings) -> frozenset[Print] | None:
        """What the model has of rotary embeddings. None if it cannot be built from these settings."""
        try:
            given = copy.deepcopy(config)
            model_class, args_class = self.classes(given)
            return frozenset(_prints(model_class(args_class.from_dict(given))))
        except (Exception, SystemExit):  # a model's code may raise anything
            return None


def readable(
    path: Path, config: Settings, classes: Callable[[Settings], tuple[Any, Any]]
) -> tuple[Settings, dict[str, str]]:
    """Settings to put over `config`, and what they are for a person. Empty where mlx-lm reads it all.

    Raises UnreadSettings for a setting that mlx-lm reads under no name.
    """
    probe = _Probe(classes)
    found: Settings = {}
    said: dict[str, str] = {}
    for inner in (None, "text_config"):
        place = config if inner is None else config.get(inner)
        if not isinstance(place, dict):
            continue
        if not isinstance(place.get(KEY), dict) or not place[KEY]:
            if inner is not None or "text_config" not in config:
                _refuse_unread_scaling(path, place, _placed(config, found, inner), probe)
            continue
        within = _placed(config, found, inner)
        added = _older_names(path, place, within, probe)
        if added:
            found |= added if inner is None else {inner: {**place, **added}}
            name = KEY if inner is None else f"{inner}.{KEY}"
            said[name] = (
                f"mlx-lm does not read {name} here: config.json gets {', '.join(sorted(added))} from it"
            )
    return found, said


def _placed(config: Settings, found: Settings, inner: str | None) -> Callable[[Settings], Settings]:
    """Puts the settings of one place among all the others."""
    rest = {**config, **found}
    return lambda changed: {**rest, **changed} if inner is None else {**rest, inner: changed}


def _older_names(
    path: Path, place: Settings, within: Callable[[Settings], Settings], probe: _Probe
) -> Settings:
    """What must be said under older names, for the settings of one place."""
    names = _translated(place)
    ways = product((_more_layers(place), place), (names, _without_scaling(names), {}))
    for tried, names in ways:
        wanted = probe(within({**tried, **names}))
        if wanted is not None:
            break
    else:  # the model cannot be built: loading says why
        return {}
    needed = {key: value for key, value in names.items() if key not in place or place[key] != value}
    for key in sorted(needed):  # only what matters to this model type
        rest = {name: value for name, value in needed.items() if name != key}
        if probe(within({**tried, **rest})) == wanted:
            needed = rest
    if wanted:
        _refuse_unread(path, tried, within, probe, wanted)
    return needed


def _more_layers(place: Settings) -> Settings:
    """The settings with enough layers for each kind of layer, where the number decides about kinds."""
    layers = place.get("num_hidden_layers")
    if place.get("layer_types") or not isinstance(layers, int):
        return place
    return {**place, "num_hidden_layers": max(12, layers)}


def _translated(place: Settings) -> Settings:
    """The settings of `rope_parameters` under every older name that some model type reads."""
    entries = _entries(place[KEY])
    main, local = entries.get(_FULL, entries.get("", {})), entries.get(_SLIDING, {})
    found: Settings = {}
    if (theta := main.get("rope_theta")) is not None:
        found |= dict.fromkeys(_BASES, theta)
    if (theta := local.get("rope_theta")) is not None:
        found |= dict.fromkeys(_LOCAL, theta)
    if _is_number(part := main.get("partial_rotary_factor")):
        found |= dict.fromkeys(_PARTS, part)
        if (width := _head(place)) is not None:
            found["rotary_dim"] = int(width * part)
    if (kind := _kind(main)) not in _PLAIN:
        rest = {key: value for key, value in main.items() if key not in _NOT_SCALING}
        found["rope_scaling"] = {**rest, "type": kind, "rope_type": kind}
    elif "rope_scaling" not in place:
        found["rope_scaling"] = None  # some model types want the key
    return found


def _without_scaling(names: Settings) -> Settings:
    return {key: value for key, value in names.items() if key != "rope_scaling"}


def _refuse_unread(
    path: Path, place: Settings, within: Callable[[Settings], Settings], probe: _Probe, now: frozenset[Print]
) -> None:
    """Raises UnreadSettings for the first setting whose value makes no difference to the model."""

    def refuse(key: str, value: object) -> UnreadSettings:
        kind = place.get("model_type") or within(place).get("model_type")
        return UnreadSettings(path=path, model_type=kind, key=key, value=value)

    kinds = place.get("layer_types")
    entries = _entries(place[KEY])
    if isinstance(kinds, list):
        entries = {name: entry for name, entry in entries.items() if not name or name in kinds}
    numbers = {number for each in now for _, number in each[1:]}
    for name, entry in entries.items():
        others = [other for each, other in entries.items() if each != name]
        for key, value, changed in _perturbed(entry):
            rope = {**place[KEY], name: changed} if name else changed
            other = _said_otherwise(place, rope)
            alike = any(
                each.get(key) == value for each in others
            )  # one setting may serve both kinds of layers
            if probe(within(other)) == now and not alike and _number_of(place, key, value) not in numbers:
                raise refuse(f"{KEY}.{name}.{key}" if name else f"{KEY}.{key}", value)
    different = {(e.get("rope_theta"), _kind(e), e.get("factor")) for e in entries.values()}
    if len(different) > len(now):
        raise refuse(KEY, "one setting for each kind of layer")


def _refuse_unread_scaling(
    path: Path, place: Settings, within: Callable[[Settings], Settings], probe: _Probe
) -> None:
    """Raises UnreadSettings if neither the absence of `rope_scaling` nor another factor changes the model."""
    scaling = place.get(OLDER)
    if not isinstance(scaling, dict) or (kind := _kind(scaling)) in _HARMLESS:
        return
    others: list[Settings | None] = [None]
    if _is_number(factor := scaling.get("factor")):
        others.append({**scaling, "factor": factor * 2})
    for tried in (_more_layers(place), place):
        if (now := probe(within(tried))) is not None:
            break
    else:  # the model cannot be built: loading says why
        return
    if now and all(probe(within({**tried, OLDER: other})) == now for other in others):
        model_type = place.get("model_type") or within(place).get("model_type")
        raise UnreadSettings(path=path, model_type=model_type, key=f"{OLDER}.type", value=kind)


def _said_otherwise(place: Settings, rope: Settings) -> Settings:
    """The settings with another `rope_parameters`, also under every older name."""
    names = _translated({**place, KEY: rope})
    scaled = "rope_scaling" in _translated(place) and "rope_scaling" not in names
    return {**place, KEY: rope, **({"rope_scaling": None} if scaled else {}), **names}


def _number_of(place: Settings, key: str, value: Any) -> Any:
    """The number that a setting becomes in a rotary embedding, if it becomes one."""
    width = _head(place)
    return int(width * value) if key == "partial_rotary_factor" and width is not None else value


def _head(place: Settings) -> int | None:
    """The width of a head."""
    if isinstance(width := place.get("head_dim"), int):
        return width
    hidden, heads = place.get("hidden_size"), place.get("num_attention_heads")
    return hidden // heads if isinstance(hidden, int) and isinstance(heads, int) and heads > 0 else None


def _perturbed(entry: Mapping[str, Any]) -> list[tuple[str, Any, Settings]]:
    """(key, its value, the entry with another value of it) of the settings that must make a difference."""
    found: list[tuple[str, Any, Settings]] = []
    theta, part, kind = entry.get("rope_theta"), entry.get("partial_rotary_factor"), _kind(entry)
    if _is_number(theta):
        found.append(("rope_theta", theta, {**entry, "rope_theta": theta * 2}))
    if _is_number(part) and part != 1:
        found.append(("partial_rotary_factor", part, {**entry, "partial_rotary_factor": part / 2}))
    if kind not in _HARMLESS:
        plain = {key: entry[key] for key in _NOT_SCALING if key in entry}
        found.append(("rope_type", kind, {**plain, "rope_type": "default"}))
    return found


def _entries(rope: Mapping[str, Any]) -> dict[str, Settings]:
    """The settings by kind of layer; under the name "" if they hold for every layer."""
    nested = {key: value for key, value in rope.items() if isinstance(value, dict)}
    return nested if nested and not _is_number(rope.get("rope_theta")) else {"": dict(rope)}


def _kind(entry: Mapping[str, Any]) -> str | None:
    kind = entry.get("rope_type") or entry.get("type")
    return kind if isinstance(kind, str) else None


def _prints(model: nn.Module) -> list[Print]:
    """Everything in a model that is a rotary embedding, or a number of one that a layer keeps for itself."""
    found: list[Print] = []
    for name, module in model.named_modules():
        leaf = name.rpartition(".")[2]
        is_rope = "rope" in type(module).__name__.lower() or "rope" in leaf or "rotary" in leaf
        kept = {**vars(module), **{k: v for k, v in module.items() if k.startswith("_")}}
        numbers = sorted(
            (key, _plain(value))
            for key, value in kept.items()
            if (is_rope or "theta" in key or "rope_base" in key) and _plain(value) is not None
        )
        if numbers:
            found.append((type(module).__name__, *numbers))
    return found


def _plain(value: object) -> Any:
    """A number, or an array of few numbers, as something that can be compared. None for anything else."""
    if isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, mx.array) and value.size <= 1 << 16:
        return tuple(value.astype(mx.float32).flatten().tolist())  # type: ignore[arg-type]
    return None


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
