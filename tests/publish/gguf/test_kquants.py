"""K-quants: llama.cpp's library makes their bytes in a process that cannot take ours down."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_unflatten

from builder.engine.rounding.importance import importance
from builder.engine.rounding.moments import taps
from builder.engine.rounding.walk import walk
from builder.gguf import imatrix
from builder.gguf.kquants import by_llama
from builder.gguf.library import LlamaMissing, library
from builder.gguf.mixes import MIXES
from builder.gguf.quantizer import Quantizer, QuantizerFailed
from builder.gguf.settings import Unwritable
from builder.gguf.writing import planned, write
from tests.publish.gguf.models import CONFIGS, make_model
from tests.publish.gguf.test_architectures import TOKENS, divergence, of_llama, written

gguf = pytest.importorskip("gguf")
pytest.importorskip("xllamacpp")

WIDE = {"hidden_size": 256, "num_attention_heads": 8, "num_key_value_heads": 4}


def tensors(file: Path) -> dict[str, Any]:
    return {each.name: each for each in gguf.GGUFReader(file).tensors}


def sums_of(made: Any) -> list[imatrix.Entry]:
    """Sums for each matrix of the layers. The second expert of a stack was given nothing."""
    rng, found = np.random.default_rng(3), []
    for tensor, weight, _ in made.tensors:
        if len(weight.shape) > 1 and tensor.name.startswith("blk") and not tensor.single:
            count = weight.shape[0] if len(weight.shape) == 3 else 1
            counts = np.full(count, 100, np.float32)
            counts[1:2] = 0
            sums = rng.gamma(0.5, 100, (count, weight.shape[-1])).astype(np.float32)
            found.append((tensor.name, sums * (counts[:, None] > 0), counts))
    return found


def loaded(folder: Path, config: Any) -> Any:
    """A model with the weights of its folder, in float32."""
    model, made = make_model(folder, config, dtype=mx.float32)
    model.update(tree_unflatten(list(made.items())))
    return model


def quantized(folder: Path, wanted: str, means: dict[str, Any] | None = None) -> Path:
    made, weights = planned(folder, "t", wanted, weighed=means is not None)
    file = folder.parent / f"{wanted}-{means is not None}.gguf"
    with Quantizer() as quantizer:
        rows = by_llama(quantizer, made.tensors, means or {})
        write(
            file, made, weights, target="t", wanted=wanted, about={}, step=lambda count: None, quantize=rows
        )
    return file


@pytest.mark.slow
@pytest.mark.parametrize("config", ["llama", "qwen3_moe"])
def test_the_weights_come_back_and_the_importance_matters(tmp_path: Path, config: str) -> None:
    make_model(tmp_path / "m", {**CONFIGS[config], **WIDE, "moe_intermediate_size": 256})
    exact = {name: np.asarray(each.data) for name, each in tensors(written(tmp_path / "m", "F32")).items()}
    made, _ = planned(tmp_path / "m", "t", "F32")
    imatrix.write(tmp_path / "i.gguf", sums_of(made), "a text", 1, 8)
    means = dict(imatrix.read(tmp_path / "i.gguf"))
    better = 0
    for wanted, most in (("Q6_K", 0.02), ("Q4_K_M", 0.1), ("IQ4_XS", 0.1), ("Q2_K", 0.35)):
        errors = []
        for own in (None, means):
            file = quantized(tmp_path / "m", wanted, own)
            weighed = 0.0
            for name, each in tensors(file).items():
                values = gguf.quants.dequantize(each.data, each.tensor_type)
                off = values - exact[name].reshape(values.shape)
                assert np.linalg.norm(off) <= most * np.linalg.norm(exact[name]), (wanted, name)
                if name in means and each.tensor_type.name not in ("F32", "Q8_0"):
                    weights = means[name].reshape(len(means[name]), *[1] * (off.ndim - 2), -1)
                    weighed += float((off**2 * (weights if off.ndim == 3 else weights[0])).sum())
            errors.append(weighed)
        better += errors[1] < errors[0]
    assert better == 4


def test_llama_cpp_computes_with_them(tmp_path: Path) -> None:
    make_model(tmp_path / "m", {**CONFIGS["llama"], **WIDE})
    expected = of_llama(written(tmp_path / "m", "F32"))
    found = [divergence(expected, of_llama(quantized(tmp_path / "m", wanted))) for wanted in ("Q6_K", "Q2_K")]
    assert found[0] < 0.05
    assert found[0] < found[1] < 5
    assert (
        MIXES["Q6_K"][1]
        == gguf.GGUFReader(tmp_path / "Q6_K-False.gguf").get_field("general.file_type").contents()
    )


@pytest.mark.parametrize("config", ["llama", "qwen3_moe"])
def test_the_importance_is_the_diagonal_of_the_moments(tmp_path: Path, config: str) -> None:
    model = loaded(tmp_path / "m", CONFIGS[config])
    tokens = mx.array([TOKENS[:20], TOKENS[20:40], TOKENS[10:30]])
    full: dict[Any, Any] = {}

    def visit(path: str, layer: Any, run: Any) -> Any:
        with taps(layer, path) as seen:
            made = run(seen.open)
        full.update({(name, 0): total for name, total in seen.plain.items()})
        full.update({(name, at): each for name, stack in seen.experts.items() for at, each in stack.items()})
        return made

    walk(model, tokens, visit)
    model = loaded(tmp_path / "m", CONFIGS[config])
    steps: list[tuple[int, int]] = []
    found = importance(model, None, None, tokens, lambda done, total: steps.append((done, total)))
    assert steps[-1] == (2, 2)
    assert {path for path, _ in full} == found.keys()
    for (path, number), total in full.items():
        diagonal = np.diag(np.array(total.total))
        assert np.allclose(found[path].sums[number], diagonal, rtol=1e-4, atol=1e-6), path
        assert found[path].counts[number] == total.count
    seen = sum(each.counts.sum() for path, each in found.items() if "up_proj" in path)
    assert seen == tokens.size * 2 * (2 if config == "qwen3_moe" else 1)


def test_llama_cpp_reads_the_importance_matrix(tmp_path: Path) -> None:
    """With its own functions, as its quantizer does it: names, types and shapes."""
    import ctypes

    make_model(tmp_path / "m", CONFIGS["qwen3_moe"])
    entries = sums_of(planned(tmp_path / "m", "t", "F32")[0])
    file = tmp_path / "i.gguf"
    imatrix.write(file, entries, "a text", 3, 8)
    lib = library()
    lib.gguf_init_from_file.restype = ctypes.c_void_p
    lib.gguf_init_from_file.argtypes = [ctypes.c_char_p, ctypes.c_uint64, ctypes.c_void_p]
    lib.gguf_get_n_tensors.restype = lib.gguf_find_tensor.restype = lib.gguf_find_key.restype = ctypes.c_int64
    lib.gguf_get_tensor_size.restype = ctypes.c_size_t
    handle = ctypes.c_void_p(lib.gguf_init_from_file(os.fsencode(file), 1, None))
    assert handle.value
    assert lib.gguf_get_n_tensors(handle) == 2 * len(entries)
    for name, sums, counts in entries:
        for part, value in (("in_sum2", sums), ("counts", counts)):
            at = lib.gguf_find_tensor(handle, f"{name}.{part}".encode())
            assert at >= 0
            assert lib.gguf_get_tensor_size(handle, ctypes.c_int64(at)) == value.nbytes
    for key in ("imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size"):
        assert lib.gguf_find_key(handle, key.encode()) >= 0
    means = imatrix.read(file)
    assert means["blk.0.ffn_up_exps.weight"].shape == (8, 128)
    assert (means["blk.0.ffn_up_exps.weight"][1] == 1).all()


def test_a_process_that_dies_is_one_line() -> None:
    values = np.ones((1, 4, 256), np.float32)
    with (
        pytest.raises(QuantizerFailed, match=r"blk.0: its process was killed by signal 9 \("),
        Quantizer() as it,
    ):
        it.quantize("blk.0", "Q4_K", values, None)
        os.kill(it._process.pid, signal.SIGKILL)
        it.quantize("blk.0", "Q4_K", values, None)
    with Quantizer() as it:
        values[0, 2, 7] = np.nan
        with pytest.raises(QuantizerFailed, match="holds a number that is not finite"):
            it.quantize("blk.1", "Q4_K", values, None)
        assert len(it.quantize("blk.1", "Q4_K", np.ones_like(values), None)) == 4 * 144


def test_a_library_that_answers_otherwise_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from concurrent.futures import ThreadPoolExecutor

    from builder.gguf import quantizing

    values = np.ones((1, 1, 256), np.float32)
    with ThreadPoolExecutor(1) as pool:
        monkeypatch.setattr(quantizing, "_known", lambda kind: (12, 256, 145))
        with pytest.raises(LlamaMissing, match="its type 12 is "):
            quantizing.Library().quantize("Q4_K", values, None, pool)
        monkeypatch.setattr(quantizing, "_WORST", 0.0)
        monkeypatch.setattr(quantizing, "_known", lambda kind: (12, 256, 144))
        with pytest.raises(LlamaMissing, match="what it makes as Q4_K reads back as something else"):
            quantizing.Library().quantize("Q4_K", values, None, pool)


def test_what_is_refused(tmp_path: Path) -> None:
    make_model(tmp_path / "m", CONFIGS["llama"])
    made, _ = planned(tmp_path / "m", "t", "Q4_K_M")
    with (
        Quantizer() as it,
        pytest.raises(Unwritable, match=r'importance matrix of "blk.0.attn_q.weight" is \(1, 64\)'),
    ):
        by_llama(it, made.tensors, {"blk.0.attn_q.weight": np.ones((1, 64), np.float32)})
