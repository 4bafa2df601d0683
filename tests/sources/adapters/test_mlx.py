"""What adapter_config.json of an mlx-lm adapter says of single modules: used, or refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import pytest

from builder.errors import SourceInvalid
from builder.sources.adapters.model import Places
from builder.sources.adapters.places import placed
from builder.sources.adapters.reading import read_adapter
from builder.sources.adapters.types import AdapterInfo
from builder.spec.types import Adapter

PATHS = tuple(f"model.layers.{number}.self_attn.q_proj" for number in range(2))
MODEL = Places((*PATHS, "model.layers.2.self_attn.q_proj", "lm_head"), {})
SCALES = {PATHS[0]: 20.0, PATHS[1]: 5.0}
UNSLOTH = {"unsloth_mlx_lora_module_scales": SCALES, "unsloth_mlx_requires_unsloth_loader": True}


def read(
    folder: Path, config: dict[str, object], paths: tuple[str, ...] = PATHS, **parameters: object
) -> AdapterInfo:
    """An adapter with a pair on each path, found in the model."""
    folder.mkdir()
    shapes = {"lora_a": (8, 4), "lora_b": (4, 8)}
    tensors = {f"{path}.{part}": mx.ones(shape) for path in paths for part, shape in shapes.items()}
    mx.save_safetensors(str(folder / "adapters.safetensors"), tensors)
    settings = {"lora_parameters": {"rank": 4, "scale": 10.0, **parameters}, **config}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    adapter = Adapter("a", "b", folder)
    return placed(read_adapter(adapter), adapter, MODEL)


@pytest.mark.parametrize(
    ("config", "parameters", "scales"),
    [
        ({}, {}, dict.fromkeys(PATHS, 10.0)),
        (UNSLOTH, {}, SCALES),
        ({"module_scales": SCALES}, {}, SCALES),
        ({}, {"scales": SCALES}, SCALES),
        ({**UNSLOTH, "unsloth_mlx_lora_module_ranks": dict.fromkeys(PATHS, 4)}, {"rank": 8}, SCALES),
        ({**UNSLOTH, "alpha_pattern": {"q_proj": 8}}, {}, SCALES),
        ({"alpha_pattern": {}, "rank_pattern": None}, {}, dict.fromkeys(PATHS, 10.0)),
    ],
)  # fmt: skip
def test_scales(
    tmp_path: Path, config: dict[str, object], parameters: dict[str, object], scales: dict[str, float]
) -> None:
    ranks = {"unsloth_mlx_lora_module_ranks": dict.fromkeys(PATHS, 4)} if "alpha_pattern" in config else {}
    assert read(tmp_path / "a", {**config, **ranks}, **parameters).scales == scales


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"module_scales": {PATHS[0]: 20.0}}, f'module_scales has no scale for "{PATHS[1]}"'),
        ({"unsloth_mlx_lora_module_scales": dict.fromkeys(PATHS, "x")}, "is not a finite number"),
        ({**UNSLOTH, "other_scales": SCALES}, "more than one table of scales"),
        ({"unsloth_mlx_lora_module_ranks": dict.fromkeys(PATHS, 8)}, "have rank 4, but .* says 8"),
        ({"unsloth_mlx_requires_unsloth_loader": True}, "says unsloth_mlx_requires_.*, but has no scale"),
        ({"alpha_pattern": {"q_proj": 8}}, "has alpha_pattern, but no rank for each module"),
        ({"module_alphas": dict.fromkeys(PATHS, 8)}, "has a value of module_alphas for single modules"),
    ],
)  # fmt: skip
def test_scales_that_are_refused(tmp_path: Path, config: dict[str, object], says: str) -> None:
    with pytest.raises(SourceInvalid, match=says):
        read(tmp_path / "a", config)


@pytest.mark.parametrize(
    ("number", "keys", "paths"),
    [
        (3, ["self_attn.q_proj"], PATHS),
        (-1, ["self_attn.q_proj"], PATHS),
        (0, None, PATHS),
        (1, list(PATHS), PATHS),
        (2, ["self_attn.q_proj"], PATHS[1:]),
        (1, ["lm_head"], ("lm_head",)),
    ],
)
def test_config_and_tensors_agree(
    tmp_path: Path, number: int, keys: list[str] | None, paths: tuple[str, ...]
) -> None:
    info = read(tmp_path / "a", {"num_layers": number}, paths, **({"keys": keys} if keys else {}))
    assert set(info.scales) == set(paths)


@pytest.mark.parametrize(
    ("number", "keys", "paths", "says"),
    [
        (2, ["self_attn.q_proj"], PATHS, f'"{PATHS[0]}.lora_a", but num_layers = 2 in .* begins at layer 1'),
        (3, ["self_attn.v_proj"], PATHS, f'"{PATHS[0]}.lora_a", but lora_parameters.keys in .* does not'),
        (3, None, ("lm_head",), 'holds "lm_head.lora_a", but lora_parameters.keys'),
        ("all", None, PATHS, "num_layers = 'all' is not a whole number"),
        (3, "q_proj", PATHS, "lora_parameters.keys = 'q_proj' is not a list of names"),
    ],
)  # fmt: skip
def test_config_denies_its_tensors(
    tmp_path: Path, number: object, keys: object, paths: tuple[str, ...], says: str
) -> None:
    with pytest.raises(SourceInvalid, match=says):
        read(tmp_path / "a", {"num_layers": number}, paths, **({"keys": keys} if keys else {}))
