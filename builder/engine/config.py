"""config.json of a variant: what mlx-lm would write, with the dtype and the number of experts that it has."""

from __future__ import annotations

import json
from typing import Any

from builder.engine.expert_places import with_setting
from builder.weights.experts import Pruned


def written(config: dict[str, Any], pruned: Pruned | None, *, vision: bool) -> bytes:
    """The file, as mlx_lm.utils.save_config writes it. `vision`: the model reads its table."""
    from mlx_lm.utils import _encode_tagged_floats

    config = dict(config) if pruned is None else with_setting(config, pruned.setting, pruned.keep)
    config.pop("_name_or_path", None)
    if not vision:
        config.pop("vision_config", None)
    if "quantization" in config:
        config["quantization_config"] = config["quantization"]
    return json.dumps(_encode_tagged_floats(dict(sorted(config.items()))), indent=4).encode()


def with_dtype(config: dict[str, Any], dtype: str | None) -> dict[str, Any]:
    """`config` with the dtype that was asked for, under each key that it uses. Changes `config`.

    mlx_lm.convert --dtype leaves the old dtype there, and the next convert casts back.
    """
    if dtype is None:
        return config
    for table in (config, config.get("text_config") or {}):
        for name in ("torch_dtype", "dtype"):
            if name in table:
                table[name] = dtype
    return config
