"""PEFT adapters of models that mlx-lm keeps under other names: fused as W + scale B A, computed by hand."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from builder.engine.inspect import inspect
from builder.engine.loading import load_base
from builder.errors import SourceInvalid
from builder.evaluate.worker.sources import reference_model
from builder.sources.adapters.places import check_fit, placed, places_of
from builder.sources.adapters.reading import read_adapter
from builder.sources.adapters.types import AdapterInfo
from builder.spec.types import Adapter, Variant
from builder.weights.structure import Structure
from tests.architectures import Architecture, checkpoint, dense, hybrid, moe
from tests.comparison import lora_shapes, stream
from tests.conftest import Sandbox
from tests.tiny import DECLARATION, make_adapter, make_base

SCALE, RANK = 3.0, 4
F32 = Variant("f32", dtype="float32")

Names = Callable[[str], str]


def as_is(path: str) -> str:
    return path


def text_only(path: str) -> str:
    """AutoModelForCausalLM of the text model."""
    return path.removeprefix("language_model.")


def whole(path: str) -> str:
    """The whole model in transformers since 4.52."""
    inner = path.removeprefix("language_model.")
    return inner if inner.startswith("lm_head") else f"model.language_model.{inner.removeprefix('model.')}"


def of_the_whole(path: str) -> str:
    """An adapter of the whole model, on a base that is the text model alone."""
    return path if path.startswith("lm_head") else f"model.language_model.{path.removeprefix('model.')}"


WRAPPED: dict[str, Architecture] = {
    "mistral3": dense("mistral3", wraps=True, dtype="float32"),
    "gemma3": dense("gemma3", wraps=True, dtype="float32"),
    "qwen3_5": hybrid("qwen3_5", wraps=True, full_attention_interval=2, dtype="float32"),
    "qwen3_vl": dense("qwen3_vl", wraps=True, dtype="float32"),
}
EXPERTS: dict[str, tuple[Architecture, dict[str, str]]] = {
    "qwen3_moe": (moe("qwen3_moe", dtype="float32"), {}),
    "olmoe": (moe("olmoe", dtype="float32"), {}),
    "mixtral": (
        moe("mixtral", dtype="float32"),
        {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"},
    ),
}


def factors(base: Path, wanted: Callable[[str], bool]) -> dict[str, dict[str, mx.array]]:
    """Path in mlx-lm -> lora_a and lora_b of it in mlx-lm's orientation."""
    model, _ = load_base(base)
    structure = inspect(base)
    found: dict[str, dict[str, mx.array]] = {}
    for path, module in model.named_modules():
        if path in structure.adaptable and wanted(path):
            found[path] = {
                part: mx.random.normal(
                    shape, scale=0.1, key=mx.random.key(2 * len(found) + (part == "lora_b"))
                )
                for part, shape in lora_shapes(module, RANK).items()
            }
    assert found
    return found


def save_peft(folder: Path, tensors: dict[str, mx.array], **changes: object) -> Adapter:
    folder.mkdir(parents=True)
    mx.save_safetensors(str(folder / "adapter_model.safetensors"), tensors)
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": SCALE * RANK, "bias": "none", **changes}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return Adapter("a", "b", folder)


def as_peft(
    pairs: dict[str, dict[str, mx.array]], names: Names, projections: dict[str, str]
) -> dict[str, mx.array]:
    """PEFT's tensors: (r, in) and (out, r) of each module, each expert a module of its own."""
    tensors: dict[str, mx.array] = {}
    for path, pair in pairs.items():
        module, _, leaf = path.rpartition(".switch_mlp.")
        for part, array in pair.items():
            kind = {"lora_a": "lora_A", "lora_b": "lora_B"}[part]
            if not module:
                tensors[f"base_model.model.{names(path)}.{kind}.weight"] = mx.contiguous(array.T)
                continue
            for number in range(array.shape[0]):
                expert = f"{names(module)}.experts.{number}.{projections.get(leaf, leaf)}"
                tensors[f"base_model.model.{expert}.{kind}.weight"] = mx.contiguous(array[number])
    return tensors


def by_hand(base: Path, pairs: dict[str, dict[str, mx.array]]) -> dict[str, np.ndarray]:
    """W + scale B A of every weight, expert by expert, in float64."""
    model, _ = load_base(base)
    weights = {
        name: np.array(w.astype(mx.float32), np.float64) for name, w in tree_flatten(model.parameters())
    }
    for path, pair in pairs.items():
        a, b = (np.array(pair[part], np.float64) for part in ("lora_a", "lora_b"))
        weight = weights[f"{path}.weight"]
        if weight.ndim == 2:
            weights[f"{path}.weight"] = weight + SCALE * (a @ b).T
        else:
            for number in range(len(weight)):
                weight[number] += SCALE * b[number] @ a[number]
    return weights


def assert_fused(base: Path, adapter: Adapter, pairs: dict[str, dict[str, mx.array]]) -> None:
    ours = stream(base, adapter.path, [F32])["f32"].tensors
    expected = by_hand(base, pairs)
    assert ours.keys() == expected.keys()
    plain = stream(base, None, [F32])["f32"].tensors
    for name, tensor in ours.items():
        array = np.frombuffer(tensor.data, np.float32).reshape(tensor.shape)
        np.testing.assert_allclose(array, expected[name], rtol=1e-5, atol=1e-5, err_msg=name)
        path = name.removesuffix(".weight")
        assert (bytes(tensor.data) != bytes(plain[name].data)) == (path in pairs), name


@pytest.mark.parametrize("names", [as_is, text_only, whole])
@pytest.mark.parametrize("model", WRAPPED)
def test_the_text_model_of_a_larger_one(model: str, names: Names, tmp_path: Path) -> None:
    base = checkpoint(tmp_path / "base", WRAPPED[model])
    pairs = factors(base, lambda path: path.endswith(("o_proj", "down_proj", "lm_head")))
    assert all(path.startswith("language_model.") for path in pairs)
    assert_fused(base, save_peft(tmp_path / "peft", as_peft(pairs, names, {})), pairs)


@pytest.mark.parametrize(
    "names", [of_the_whole, lambda path: f"language_model.{path}"], ids=["now", "before 4.52"]
)
def test_the_base_is_the_text_model_of_what_was_trained(names: Names, tmp_path: Path) -> None:
    base = checkpoint(tmp_path / "base", dense("qwen3", dtype="float32"))
    pairs = factors(base, lambda path: path.endswith(("o_proj", "down_proj")))
    assert_fused(base, save_peft(tmp_path / "peft", as_peft(pairs, names, {})), pairs)


@pytest.mark.parametrize("model", EXPERTS)
def test_experts_one_by_one(model: str, tmp_path: Path) -> None:
    architecture, projections = EXPERTS[model]
    base = checkpoint(tmp_path / "base", architecture)
    pairs = factors(base, lambda path: "switch_mlp" in path or path.endswith("q_proj"))
    assert any("switch_mlp" in path for path in pairs)
    assert_fused(base, save_peft(tmp_path / "peft", as_peft(pairs, as_is, projections)), pairs)


def test_experts_of_a_text_model_of_a_larger_one(tmp_path: Path) -> None:
    base = checkpoint(tmp_path / "base", moe("kimi_vl", wraps=True, dtype="float32"))
    pairs = factors(base, lambda path: "switch_mlp" in path)
    assert all(path.startswith("language_model.") for path in pairs)
    assert_fused(base, save_peft(tmp_path / "peft", as_peft(pairs, text_only, {})), pairs)


def test_a_build_and_what_it_is_compared_with(sandbox: Callable[..., Sandbox]) -> None:
    """The same factors under mlx-lm's names and under PEFT's names of a larger model: the same bytes."""
    shards, models = [], []
    for layout in ("mlx", "peft"):
        box = sandbox(DECLARATION, layout)
        make_base(box.root / "base")
        adapter = make_adapter(box.root / "adapter")
        stored = adapter / "adapters.safetensors"
        if layout == "peft":
            pairs: dict[str, dict[str, mx.array]] = {}
            for name, tensor in dict(mx.load(str(stored))).items():
                path, _, part = name.rpartition(".")
                pairs.setdefault(path, {})[part] = tensor
            save_peft(box.root / "new", as_peft(pairs, of_the_whole, {}), lora_alpha=2 * RANK)
            shutil.rmtree(adapter)
            (box.root / "new").rename(adapter)
        ran = box.doit("model:m_4bit")
        assert ran.code == 0, ran.text
        again = box.doit("model:m_4bit")
        assert again.code == 0 and "built" not in again.text
        shards.append({file.name: file.read_bytes() for file in box.view("m_4bit").glob("*.safetensors")})
        base = {"directory": str(box.root / "base"), "dequantize": False, "trust_remote_code": False}
        model = reference_model(base, {"name": "tuned", "base": "tiny", "path": str(adapter)}).model
        models.append(dict(tree_flatten(model.parameters())))
    assert shards[0] == shards[1]
    assert all(mx.array_equal(models[0][name], array).item() for name, array in models[1].items())


# -- what has no place ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Structure, dict[str, mx.array]]:
    """A mixture of experts, and PEFT's tensors of one of its projections."""
    base = checkpoint(tmp_path_factory.mktemp("moe") / "base", EXPERTS["qwen3_moe"][0])
    pairs = factors(base, lambda path: path == "model.layers.1.mlp.switch_mlp.up_proj")
    return inspect(base), as_peft(pairs, as_is, {})


def refusal(structure: Structure, adapter: Adapter) -> str:
    places = places_of(structure)
    with pytest.raises(SourceInvalid) as caught:
        check_fit(adapter, placed(read_adapter(adapter), adapter, places), places)
    return str(caught.value)


def test_a_set_of_experts_that_is_not_whole(
    experts: tuple[Structure, dict[str, mx.array]], tmp_path: Path
) -> None:
    structure, tensors = experts
    count = len(tensors) // 2
    some = {name: tensor for name, tensor in tensors.items() if ".experts.1." not in name}
    adapter = save_peft(tmp_path / "peft", some)
    assert refusal(structure, adapter) == (
        f'adapter.a: {adapter.path}: the experts of "model.layers.1.mlp.switch_mlp.up_proj" are one weight in'
        f" mlx-lm, and the adapter holds {count - 1} of {count} (number 1 is missing).\n"
        "  Train the same low-rank pair on every expert of a layer, or on none."
    )
    more = {
        re.sub(r"experts\.0\.", "experts.99.", name): t
        for name, t in tensors.items()
        if ".experts.0." in name
    }
    adapter = save_peft(tmp_path / "more", tensors | more)
    assert f"number 99, but there are only {count}" in refusal(structure, adapter)


def test_experts_that_differ(experts: tuple[Structure, dict[str, mx.array]], tmp_path: Path) -> None:
    structure, tensors = experts
    scales = save_peft(tmp_path / "scales", tensors, alpha_pattern={r"experts\.0\.up_proj": 2})
    assert "the adapter's pairs have different scales" in refusal(structure, scales)
    half = {n: t.astype(mx.float16) if ".experts.0." in n else t for n, t in tensors.items()}
    assert "have different shapes or types" in refusal(structure, save_peft(tmp_path / "half", half))
    ranks = {n: t for n, t in tensors.items() if ".experts.0." not in n}
    for name, tensor in tensors.items():
        if ".experts.0." in name:
            ranks[name] = tensor[:2] if "lora_A" in name else mx.contiguous(tensor[:, :2])
    adapter = save_peft(tmp_path / "ranks", ranks, rank_pattern={r"experts\.0\.up_proj": 2})
    assert "have different shapes or types" in refusal(structure, adapter)


def test_an_adapter_of_another_model_keeps_its_names(tmp_path: Path) -> None:
    structure = inspect(checkpoint(tmp_path / "base", WRAPPED["mistral3"]))
    pair = {"A": mx.ones((RANK, 64)), "B": mx.ones((64, RANK))}
    tensors = {f"base_model.model.model.layers.9.mlp.up_proj.lora_{k}.weight": t for k, t in pair.items()}
    says = refusal(structure, save_peft(tmp_path / "peft", tensors))
    assert 'tensor "model.layers.9.mlp.up_proj.lora_a" matches nothing in base "b"' in says


def test_an_mlx_lm_adapter_is_never_renamed(experts: tuple[Structure, dict[str, mx.array]]) -> None:
    info = AdapterInfo("a", "mlx-lm", "lora", None, (), {})  # type: ignore[arg-type]
    assert placed(info, Adapter("a", "b", Path("/a")), places_of(experts[0])) is info
