"""What adapter_config.json of an mlx-lm adapter says of single tensors. Pure.

mlx_lm.tuner.utils.load_adapters makes LoRA layers in the last `num_layers` layers for the paths in `keys`,
and refuses tensors for which it made none. Other trainers write a scale for each module, which mlx-lm does
not read.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Collection, Mapping
from typing import Any

from builder.sources.adapters.model import Places
from builder.sources.adapters.peft import Unfit, finite
from builder.sources.adapters.types import CONFIG, AdapterInfo, refuse
from builder.spec.types import Adapter

_LAYER = re.compile(r"(?:^|.*?\.)(\d+)\.(.+)")
# Settings of PEFT that give modules scales of their own. A converter should have written out the scales.
_PATTERNS = ("alpha_pattern", "rank_pattern")


def per_module(
    adapter: Adapter, config: Mapping[str, Any], what: str, paths: Collection[str]
) -> dict[str, float] | None:
    """The `rank` or the `scale` of each path, where the config has a table of them. None: it has none.

    Such as unsloth_mlx_lora_module_scales. Raises SourceInvalid for a table that leaves out a path of the
    adapter, and for a config that says that there are scales of single modules, but not which.
    """
    where = adapter.path / CONFIG
    parameters = config["lora_parameters"]
    found = {
        name: value
        for settings in (config, parameters)
        for name, value in settings.items()
        if re.search(rf"(^|_){what}s$", name) and isinstance(value, dict)
    }
    for name, value in {**config, **parameters}.items():
        odd = isinstance(value, dict) and not re.search(r"(rank|scale|dropout)s?$", name)
        if odd and any(isinstance(value.get(path), int | float) for path in paths):
            refuse(adapter, where, f"has a value of {name} for single modules, and mlx-lm does not know it")
    if isinstance(parameters.get(what), dict):
        found[what] = parameters[what]
    if len(found) > 1:
        refuse(adapter, where, f"has more than one table of {what}s: {', '.join(sorted(found))}")
    if not found:
        for name in _PATTERNS:
            if config.get(name) or parameters.get(name):
                refuse(
                    adapter, where, f"has {name}, but no {what} for each module, and mlx-lm has one for all"
                )
        needs = [
            name
            for name, value in config.items()
            if re.search(r"requires_\w*loader$", name) and value is True
        ]
        if needs and what == "scale":
            refuse(adapter, where, f"says {needs[0]}, but has no scale for each module")
        return None
    name, table = next(iter(found.items()))
    if missing := sorted(set(paths) - table.keys()):
        refuse(adapter, where, f'{name} has no {what} for "{missing[0]}"')
    try:
        return {path: finite(table[path], f'{name}["{path}"]') for path in paths}
    except Unfit as error:
        refuse(adapter, where, str(error))


def check_covered(info: AdapterInfo, adapter: Adapter, places: Places) -> None:
    """Raises SourceInvalid for a tensor for which mlx-lm makes no layer, by `num_layers` and `keys`.

    Tensors that the model has no place for are left to `check_fit`.
    """
    if info.fine_tune_type == "full" or "num_layers" not in info.config:
        return
    where = adapter.path / CONFIG
    number, keys = info.config["num_layers"], info.config["lora_parameters"].get("keys")
    if isinstance(number, bool) or not isinstance(number, int):
        refuse(adapter, where, f"num_layers = {reprlib.repr(number)} is not a whole number")
    if keys is not None and not (isinstance(keys, list) and all(isinstance(key, str) for key in keys)):
        refuse(adapter, where, f"lora_parameters.keys = {reprlib.repr(keys)} is not a list of names")
    layers = {int(match[1]) for path in places.adaptable if (match := _LAYER.fullmatch(path))}
    first = max(layers, default=-1) + 1 - number if number > 0 else 0
    for tensor in sorted(info.tensors, key=lambda tensor: tensor.name):
        if not places.fits(tensor.name) or (keys is not None and tensor.path in keys):
            continue
        match = _LAYER.fullmatch(tensor.path)
        hint = "mlx-lm makes no LoRA layer for this tensor. Correct adapter_config.json."
        if match is None or (keys is not None and match[2] not in keys):
            what = f'holds "{tensor.name}", but lora_parameters.keys in {CONFIG} does not name it'
            refuse(adapter, info.file.path, what, hint)
        if int(match[1]) < first:
            what = f'holds "{tensor.name}", but num_layers = {number} in {CONFIG} begins at layer {first}'
            refuse(adapter, info.file.path, what, hint)
