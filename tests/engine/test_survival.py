"""Survival: what is measured while building is what the tensors say, and costs no second pass."""

from __future__ import annotations

import json
import tomllib
from collections import Counter
from pathlib import Path

import mlx.core as mx
import pytest

from builder.engine.survival import SAMPLE, sampled_rows
from builder.weights.survival import rows, total
from tests.build.test_one_pass import Make
from tests.conftest import Sandbox
from tests.reference import tensors
from tests.tiny import DECLARATION, make_adapter, make_base


@pytest.fixture
def built(sandbox: Make) -> Sandbox:
    box = sandbox(DECLARATION.replace('"5bit"]', '"5bit", "8bit"]') + "\n[variant.8bit]\nbits = 8\n")
    make_base(box.root / "base")
    make_adapter(box.root / "adapter")
    assert box.doit("model:m", "model:m_f16").code == 0
    return box


def measures(box: Sandbox, target: str) -> dict[str, float]:
    found: dict[str, float] = tomllib.loads((box.view(target) / "artifact.toml").read_text())["measures"]
    return found


def dequantized(folder: Path, path: str, bits: int) -> mx.array:
    t = tensors(folder)
    parts = [t[f"{path}.{leaf}"] for leaf in ("weight", "scales", "biases")]
    return mx.dequantize(*parts, group_size=64, bits=bits).astype(mx.float32)


def test_the_figures_are_those_of_the_tensors(built: Sandbox) -> None:
    """Recomputed from what lies in the store; the tiny model is below the sample, so nothing is estimated."""
    base = tensors(built.root / "base")
    lora = mx.load(str(built.root / "adapter/adapters.safetensors"))
    assert isinstance(lora, dict)
    delta2 = error2 = dot = remains2 = 0.0
    for path in sorted({name.rpartition(".")[0] for name in lora}):
        before = base[f"{path}.weight"]
        change = ((2.0 * lora[f"{path}.lora_b"].T) @ lora[f"{path}.lora_a"].T).astype(before.dtype)
        fused, start = (before + change).astype(mx.float32), before.astype(mx.float32)
        made = dequantized(built.view("m_5bit"), path, 5)
        delta2 += mx.sum((fused - start) ** 2).item()  # type: ignore[operator]
        error2 += mx.sum((made - fused) ** 2).item()  # type: ignore[operator]
        dot += mx.sum((fused - start) * (made - start)).item()  # type: ignore[operator]
        remains2 += mx.sum((made - start) ** 2).item()  # type: ignore[operator]
    found = measures(built, "m_5bit")
    assert found["survival_db"] == pytest.approx(10 * mx.log10(mx.array(delta2 / error2)).item(), abs=0.02)
    assert found["survival_cosine"] == pytest.approx(dot / (delta2 * remains2) ** 0.5, abs=1e-3)


def test_more_bits_leave_more(built: Sandbox) -> None:
    four, five, eight = (measures(built, f"m_{bits}bit") for bits in (4, 5, 8))
    assert four["survival_db"] < five["survival_db"] < eight["survival_db"]
    assert four["survival_cosine"] < five["survival_cosine"] < eight["survival_cosine"] <= 1.0
    assert four["quantization_error"] > five["quantization_error"] > eight["quantization_error"]
    assert "survival_db" not in measures(built, "m_f16")


def test_status_shows_it(built: Sandbox) -> None:
    shown = json.loads(built.doit("status", "--json").out)
    by_name = {row["target"]: row["survival"] for row in shown["targets"]}
    assert by_name["m_5bit"] == measures(built, "m_5bit")["survival_db"]


def test_it_can_be_turned_off_and_changes_no_byte(built: Sandbox, sandbox: Make) -> None:
    text = built.toml.read_text().replace('path = "base"', f'path = "{built.root}/base"')
    text = text.replace('path = "adapter"', f'path = "{built.root}/adapter"')
    other = sandbox(text + "\n[build]\nsurvival = false\n", name="other")
    assert other.doit("model:m_5bit").code == 0
    assert "survival_db" not in measures(other, "m_5bit")
    for name in ("model-00004-of-00006.safetensors", "config.json"):
        assert (other.view("m_5bit") / name).read_bytes() == (built.view("m_5bit") / name).read_bytes()


@pytest.mark.parametrize("shape", [(128, 768, 2048), (8, 14336, 4096), (4, 10, 64), (256, 3, 1 << 17)])
def test_every_expert_is_looked_at(shape: tuple[int, int, int]) -> None:
    experts, rows, columns = shape
    total, chosen = sampled_rows(shape)
    assert total == experts * rows
    assert len(set(chosen.tolist())) == len(chosen)
    by_expert = Counter((chosen // rows).tolist())
    assert set(by_expert) == set(range(experts))
    assert set(by_expert.values()) == {max(1, min(rows, SAMPLE // columns // experts))}
    if len(chosen) < total and rows > 3:
        assert len(set((chosen % rows).tolist())) > 1, "of each expert the same row"


def test_rows_of_one_weight_are_taken_evenly() -> None:
    total, chosen = sampled_rows((1000, 1024))
    assert (total, len(chosen), chosen[0], chosen[-1]) == (1000, 64, 0, 999)
    assert sampled_rows((5, 64))[1].tolist() == [0, 1, 2, 3, 4]


def test_sums() -> None:
    text = '[["a", 100, 4, 1, 4, 5], ["b", 100, 0, 3, 0, 3]]'
    found = total(rows(text))
    assert found is not None
    assert found.db == pytest.approx(6.0206, abs=1e-3)
    assert found.cosine == pytest.approx(4 / 20**0.5)
    assert found.error == pytest.approx((4 / 200) ** 0.5)
    assert total([]) is None
    only_error = total(rows('[["b", 100, 0, 1, 0, 1]]'))
    assert only_error is not None
    assert only_error.db is None
