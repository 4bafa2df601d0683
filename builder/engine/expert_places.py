"""Where a model has its experts. It is tried, not looked up, so one rule serves all architectures of mlx-lm.

The model is built without weights, once as its config says and once with another number of experts. Every
parameter whose shape follows that number has a place for each expert, along the axis that changed.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import mlx.nn as nn
from mlx.utils import tree_flatten

from builder.console.words import one_line
from builder.errors import BuildError
from builder.weights.structure import block_of

Config = Mapping[str, Any]
_GROUPS = ("n_group", "num_expert_group")
_OPEN = ("topk_group",)
_INSIDE = ("args", "config")  # where modules keep the settings that they were made from


class NotPrunable(BuildError):
    """The experts of model type {model_type} cannot be left out: {what}."""

    exit_code = 2
    hint = "Remove `experts` from this variant."


@dataclass(frozen=True)
class Places:
    """`setting`: where the config has the number of experts, `count`. `axes`: by parameter. `stacks`: block
    -> the module that is given the tokens and the numbers of their experts. `groups`, `open_groups`: see
    builder.weights.experts.
    """

    setting: tuple[str, ...]
    count: int
    axes: Mapping[str, int]
    stacks: Mapping[str, str]
    groups: int
    open_groups: int


def find(model: nn.Module, config: Config) -> Places:
    """Where `model` has its experts. Raises NotPrunable."""
    refused = partial(NotPrunable, model_type=config.get("model_type", "?"))
    if "model_file" in config:
        raise refused(what="it brings code of its own")
    own = shapes(model)
    experts = _stacks(model)
    failed = ""
    for setting, count in _settings(config):
        try:
            other = shapes(build(with_setting(config, setting, count + 1)))
        except (Exception, SystemExit) as error:  # a model's code may raise anything
            failed = one_line(error)
            continue
        changed = {name for name in own.keys() & other.keys() if own[name] != other[name]}
        if own.keys() == other.keys() and any(
            own[f"{path}.weight"][0] == count and f"{path}.weight" in changed for path in experts
        ):
            axes = {name: _axis(own[name], other[name]) for name in changed}
            if None in axes.values():
                odd = min(name for name, axis in axes.items() if axis is None)
                raise refused(what=f'"{odd}" does not have one place for each expert')
            found = {name: axis for name, axis in axes.items() if axis is not None}
            stacks = _by_block(experts, found, refused)
            groups, opened = _setting_of(model, _GROUPS), _setting_of(model, _OPEN)
            return Places(setting, count, found, stacks, groups, min(groups, opened))
        if own.keys() != other.keys() and "expert" in " ".join(own.keys() ^ other.keys()):
            failed = "mlx-lm keeps each expert as a module of its own"
    if not experts and not failed:
        raise NotPrunable(model_type=config.get("model_type", "?"), what="it has none")
    raise refused(what=failed or "no setting of config.json says how many there are")


def build(config: Config) -> nn.Module:
    """A model as mlx-lm makes it from a config, with random weights that nothing computes."""
    from mlx_lm.utils import _get_classes

    given = copy.deepcopy(dict(config))
    model_class, args_class = _get_classes(config=given)
    model = model_class(args_class.from_dict(given))
    assert isinstance(model, nn.Module)
    return model


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """The shape of each parameter."""
    return {name: tuple(array.shape) for name, array in tree_flatten(model.parameters())}


def with_setting(config: Config, setting: tuple[str, ...], value: int) -> dict[str, Any]:
    """A copy of the config with another value of a setting, maybe of an inner table."""
    made = copy.deepcopy(dict(config))
    place = made
    for name in setting[:-1]:
        place = place[name]
    place[setting[-1]] = value
    return made


def _settings(config: Config, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], int]]:
    """Each whole number of a config whose name speaks of experts, with its place."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _settings(value, (*path, name))
        elif type(value) is int and "expert" in name and value > 1:
            yield (*path, name), value


def _stacks(model: nn.Module) -> list[str]:
    from mlx_lm.models.switch_layers import SwitchLinear

    return [path for path, module in model.named_modules() if isinstance(module, SwitchLinear)]


def _axis(one: tuple[int, ...], other: tuple[int, ...]) -> int | None:
    """The only axis along which two shapes differ, by one. None where there is no such axis."""
    if len(one) != len(other):
        return None
    differ = [axis for axis, sizes in enumerate(zip(one, other, strict=True)) if sizes[0] != sizes[1]]
    return differ[0] if len(differ) == 1 and other[differ[0]] == one[differ[0]] + 1 else None


def _by_block(experts: list[str], axes: Mapping[str, int], refused: Any) -> dict[str, str]:
    """Block -> the module around its stacks of experts."""
    found: dict[str, str] = {}
    for path in experts:
        if f"{path}.weight" not in axes:
            continue  # a stack of something else, as deepseek_v41 has for its attention
        block, around = block_of(f"{path}.weight"), path.rpartition(".")[0]
        if found.setdefault(block, around) != around:
            raise refused(what=f'"{block}" has several mixtures of experts')
    for name in axes:
        if block_of(name) not in found:
            raise refused(what=f'"{name}" has a place for each expert, and its layer has no experts')
    return found


def _setting_of(model: nn.Module, names: tuple[str, ...]) -> int:
    """The largest number that a module has under one of these names. 1 without one."""
    found = 1
    for module in model.modules():
        holders = [module, *(getattr(module, name, None) for name in _INSIDE)]
        for holder in holders:
            for name in names:
                value = getattr(holder, name, None) if holder is not None else None
                if type(value) is int:
                    found = max(found, value)
    return found
