"""Settings of rotary embeddings under their newer name: read, said under older names, or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from builder.engine.inspect import inspect
from builder.engine.loading import load
from builder.engine.rope import UnreadSettings, readable
from tests.architectures import REGISTRY, Architecture, checkpoint

DEFAULT = {"rope_type": "default", "rope_theta": 12345.0}
LINEAR = {"rope_type": "linear", "rope_theta": 12345.0, "factor": 4.0}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "rope_theta": 12345.0, "factor": 4.0, "original_max_position_embeddings": 32}
PART = {**DEFAULT, "partial_rotary_factor": 0.25}
LAYERS = {"sliding_attention": {**DEFAULT, "rope_theta": 777.0}, "full_attention": LINEAR}
_OLDER = ("rope_theta", "rope_scaling", "partial_rotary_factor", "rope_local_base_freq", "rotary_emb_base")


def settings(model_type: str, rope: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A config as newer versions of transformers write it."""
    config = next(each for each in REGISTRY if each.model_type == model_type).config
    place = config.get("text_config", config)
    for name in _OLDER:
        place.pop(name, None)
    place |= {"rope_parameters": rope, **more}
    return json.loads(json.dumps(config))  # type: ignore[no-any-return]


def added(model_type: str, rope: dict[str, Any], **more: Any) -> dict[str, Any]:
    """What is put over the config."""
    from mlx_lm.utils import _get_classes

    config = settings(model_type, rope, **more)
    found, said = readable(Path("base"), config, lambda given: _get_classes(config=given))
    assert bool(found) is bool(said)
    inner = found.get("text_config")
    if inner is None:
        return found
    return {key: value for key, value in inner.items() if config["text_config"].get(key) != value}


@pytest.mark.parametrize(
    ("model_type", "rope", "expected"),
    [
        ("llama", DEFAULT, {"rope_theta": 12345.0}),
        ("llama", LLAMA3, {"rope_theta": 500000.0, "rope_scaling": {"type": "llama3", "factor": 8.0}}),
        ("qwen2", YARN, {"rope_theta": 12345.0, "rope_scaling": {"type": "yarn", "factor": 4.0}}),
        ("mistral3", DEFAULT, {"rope_theta": 12345.0}),  # in text_config
        ("phi", PART, {"rope_theta": 12345.0, "partial_rotary_factor": 0.25}),
        ("gpt_neox", PART, {"rotary_emb_base": 12345.0, "rotary_pct": 0.25}),
        ("minimax", {**DEFAULT, "partial_rotary_factor": 0.5}, {"rope_theta": 12345.0}),
        ("gemma3_text", LAYERS,
         {"rope_theta": 12345.0, "rope_local_base_freq": 777.0, "rope_scaling": {"factor": 4.0}}),
        # read by mlx-lm, under the new name
        ("qwen3", DEFAULT, {}),
        ("qwen3", YARN, {}),
        ("qwen3_5", DEFAULT, {}),
        ("lfm2", DEFAULT, {}),
        # the values that mlx-lm takes unasked
        ("llama", {"rope_type": "default", "rope_theta": 10000}, {}),
        # no rotary embedding at all
        ("mamba", DEFAULT, {}),
        ("jamba", DEFAULT, {}),
    ],
)  # fmt: skip
def test_what_is_said_under_older_names(
    model_type: str, rope: dict[str, Any], expected: dict[str, Any]
) -> None:
    found = added(model_type, rope)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        if isinstance(value, dict):
            assert value.items() <= found[key].items()
            assert "rope_theta" not in found[key]
        else:
            assert found[key] == value


@pytest.mark.parametrize(
    ("model_type", "rope", "key"),
    [
        ("cohere", LLAMA3, "rope_parameters.rope_type = llama3"),
        ("qwen3_moe", YARN, "rope_parameters.rope_type = yarn"),
        ("lfm2", YARN, "rope_parameters.rope_type = yarn"),  # it reads rope_theta only
        ("granitemoehybrid", LINEAR, "rope_parameters.rope_type = linear"),
        ("llama", {**DEFAULT, "partial_rotary_factor": 0.5}, "rope_parameters.partial_rotary_factor = 0.5"),
        ("qwen2", LAYERS, "rope_parameters.sliding_attention.rope_theta = 777.0"),
        ("gptj", DEFAULT, "rope_parameters.rope_theta = 12345.0"),
    ],
)
def test_what_mlx_lm_reads_under_no_name_is_refused(model_type: str, rope: dict[str, Any], key: str) -> None:
    with pytest.raises(UnreadSettings) as caught:
        added(model_type, rope)
    assert f"mlx-lm's {model_type} does not read {key}" in str(caught.value)


def scaled(model_type: str, scaling: dict[str, Any]) -> dict[str, Any]:
    """A config as older versions of transformers wrote it."""
    config = json.loads(json.dumps(next(each for each in REGISTRY if each.model_type == model_type).config))
    place = config.get("text_config", config)
    place.pop("rope_parameters", None)
    place["rope_scaling"] = scaling
    return config  # type: ignore[no-any-return]


def read(config: dict[str, Any]) -> None:
    from mlx_lm.utils import _get_classes

    assert readable(Path("base"), config, lambda given: _get_classes(config=given)) == ({}, {})


@pytest.mark.parametrize(
    ("model_type", "scaling", "kind"),
    [
        ("cohere", LLAMA3, "llama3"),
        ("qwen3_moe", YARN, "yarn"),
        ("lfm2", YARN, "yarn"),
        ("granitemoehybrid", {"type": "linear", "factor": 4.0}, "linear"),
        ("lfm2-vl", {"type": "linear", "factor": 4.0}, "linear"),  # in text_config
    ],
)
def test_scaling_under_the_older_name_that_mlx_lm_ignores(
    model_type: str, scaling: dict[str, Any], kind: str
) -> None:
    with pytest.raises(UnreadSettings, match=f"does not read rope_scaling.type = {kind} in config.json"):
        read(scaled(model_type, scaling))


@pytest.mark.parametrize(
    ("model_type", "scaling"),
    [
        ("llama", LLAMA3),
        ("qwen2", YARN),
        ("llama", {"type": "linear", "factor": 1.0}),  # it is read, and changes nothing
        ("qwen3_moe", {"type": "mrope", "mrope_section": [2, 3, 3]}),
        ("qwen3_moe", {"rope_type": "default"}),
        # up to max_position_embeddings this is no scaling
        ("internlm2", {"type": "dynamic", "factor": 2.0}),
        ("qwen3_moe", {"type": "dynamic", "factor": 2.0}),
        # no rotary embedding at all
        ("gpt2", {"type": "linear", "factor": 4.0}),
        ("mamba", YARN),
        ("qwen3_moe", {}),
        ("qwen3_moe", {"type": 7, "factor": "x"}),
    ],
)
def test_scaling_under_the_older_name_that_is_read_or_harmless(
    model_type: str, scaling: dict[str, Any]
) -> None:
    read(scaled(model_type, scaling))


def test_no_architecture_is_refused_for_its_own_scaling() -> None:
    own = [each for each in REGISTRY if each.config.get("text_config", each.config).get("rope_scaling")]
    assert {each.model_type for each in own} >= {"minicpm3", "deepseek_v2", "phimoe", "hunyuan", "exaone4"}
    for each in own:
        read(each.config)


def test_an_older_name_that_says_something_else_gives_way() -> None:
    assert added("llama", DEFAULT, rope_theta=1e6) == {"rope_theta": 12345.0}
    assert added("qwen3", DEFAULT, rope_theta=1e6) == {"rope_theta": 12345.0}  # it reads the older name first
    assert added("llama", DEFAULT, rope_theta=12345.0) == {}


def test_every_architecture_reads_says_or_refuses() -> None:
    """Never anything but UnreadSettings, and never a theta that is neither read nor said."""
    silent = []
    for model_type in dict.fromkeys(each.model_type for each in REGISTRY):
        if model_type == "olmo":  # exits without a package of its own
            continue
        try:
            one, other = (added(model_type, {**DEFAULT, "rope_theta": theta}) for theta in (12345.0, 54321.0))
        except UnreadSettings:
            continue
        if one != other:
            continue
        silent.append(model_type)
    # The first two lines have no rotary embedding or read the new name. The last lacks another setting.
    assert set(silent) <= {
        "gpt2", "gpt_bigcode", "talkie", "jamba", "nemotron_h", "kimi_k3", "mamba", "mamba2", "rwkv7",
        "ministral3", "qwen3", "qwen3_vl", "muse_glimmer", "spark2_5", "glm_moe_dsa", "exaone_moe", "mellum",
        "minimax_m3_vl", "mistral4", "qwen3_5", "qwen3_5_moe", "prism_hadamard_qwen35", "granitemoehybrid",
        "lfm2", "lfm2_moe", "lfm2-vl", "olmo_hybrid",
        "stablelm", "gpt_neox", "exaone4", "glm4", "minicpm3", "deepseek_v2", "glm4_moe", "hunyuan", "llama4",
        "mimo_v2_flash", "solar_open", "qwen3_next", "gemma3n",
    }  # fmt: skip


def test_the_settings_are_loaded_and_written(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "base", Architecture("llama", "dense"))
    config = json.loads((folder / "config.json").read_text())
    config.pop("rope_theta")
    (folder / "config.json").write_text(json.dumps({**config, "rope_parameters": LLAMA3}))
    loaded = load(folder)
    rope = loaded.model.layers[0].self_attn.rope
    assert type(rope).__name__ == "Llama3RoPE"
    assert loaded.config["rope_theta"] == 500000.0
    assert loaded.config["rope_scaling"]["rope_type"] == "llama3"
    assert list(loaded.repairs) == ["rope_parameters"]
    assert inspect(folder).repairs == loaded.repairs
    (folder / "config.json").write_text(json.dumps(loaded.config))
    again = load(folder)
    assert again.repairs == {}
    assert mx.array_equal(again.model.layers[0].self_attn.rope._freqs, rope._freqs)


@pytest.mark.parametrize(
    "rope", [7, "x", [], {}, {"rope_theta": "x"}, {"rope_theta": None}, {"full_attention": {}}]
)
def test_nonsense_is_no_setting(rope: object) -> None:
    added("llama", rope)  # type: ignore[arg-type]
