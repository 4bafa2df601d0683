"""dwq on top of a quantized target: codes stay, scales and biases are tuned. Real runs on the tiny model."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import pytest

from tests.build.test_learned import run, words
from tests.build.test_one_pass import ROW
from tests.conftest import Ran, Sandbox
from tests.tiny import DECLARATION, make_adapter, make_base

TUNED = """
[variant.tuned]
method = "dwq"
from = "f16"
start = "4bit"
calibration = "text.txt"
learning_rate = 1e-5
samples = 16
sequence_length = 32
"""
Make = Callable[..., Sandbox]


@pytest.fixture
def box(sandbox: Make) -> Sandbox:
    made = sandbox(DECLARATION.replace('"5bit"]', '"5bit", "tuned"]') + TUNED)
    make_base(made.root / "base")
    make_adapter(made.root / "adapter")
    (made.root / "text.txt").write_text(words(0))
    (made.root / "home").mkdir()
    return made


def tensors(box: Sandbox, target: str) -> dict[str, mx.array]:
    found: dict[str, Any] = {}
    for file in sorted(box.view(target).glob("*.safetensors")):
        found |= mx.load(str(file))
    return found


def contents(box: Sandbox, target: str) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(box.view(target).glob("*.safetensors"))}


def made(ran: Ran) -> set[str]:
    assert ran.code == 0, ran.text
    return {name for name, _, _ in ROW.findall(ran.out)}


def measures(box: Sandbox) -> dict[str, Any]:
    return dict(tomllib.loads((box.view("m_tuned") / "artifact.toml").read_text())["measures"])


def test_codes_stay_and_scales_are_tuned(box: Sandbox) -> None:
    ran = run(box, "model:m_tuned")
    assert made(ran) == {"m_f16", "m_4bit", "m_tuned"}
    assert "m_tuned: dwq on m_f16 and m_4bit" in ran.text
    assert "pruned m_f16" in ran.text
    start, now = tensors(box, "m_4bit"), tensors(box, "m_tuned")
    assert {name: each.dtype for name, each in now.items()} == {n: e.dtype for n, e in start.items()}
    moved = {name for name in start if not mx.array_equal(now[name], start[name])}
    assert {name.rpartition(".")[2] for name in moved} == {"scales", "biases"}
    assert moved >= {name for name in start if ".layers." in name and name.endswith(".scales")}
    said = measures(box)
    assert said["tuned_kl"] < said["start_kl"]
    assert f"KL on 256 other tokens {said['start_kl']:.4g} -> {said['tuned_kl']:.4g}\n" in ran.text
    config = [json.loads((box.view(name) / "config.json").read_text()) for name in ("m_4bit", "m_tuned")]
    assert config[0]["quantization"] == config[1]["quantization"]
    assert made(run(box, "model:m_tuned")) == set()


@pytest.mark.slow
def test_two_runs_give_the_same_bytes_and_mlx_lm_loads_them(box: Sandbox) -> None:
    from mlx_lm import load

    assert "m_tuned" in made(run(box, "model:m_tuned"))
    first = contents(box, "m_tuned")
    assert run(box, "clean:tuned").code == 0
    assert "m_tuned" in made(run(box, "model:m_tuned"))
    assert contents(box, "m_tuned") == first
    assert load(str(box.view("m_tuned")))[0] is not None


@pytest.mark.slow
def test_what_is_no_better_is_not_kept(box: Sandbox) -> None:
    box.edit("learning_rate = 1e-5", "learning_rate = 0.5")
    ran = run(box, "model:m_tuned")
    assert "m_tuned" in made(ran)
    assert ": not less, so the scales and biases of m_4bit are kept\n" in ran.text
    start, now = tensors(box, "m_4bit"), tensors(box, "m_tuned")
    assert all(bool(mx.array_equal(now[name], start[name])) for name in start)
    assert measures(box)["tuned_kl"] == measures(box)["start_kl"]


@pytest.mark.slow
def test_an_intermediate_start_lives_as_long_as_it_is_needed(box: Sandbox) -> None:
    """It is calibrated too, so it has a pass of its own."""
    box.edit(
        "bits = 4\ngroup_size = 64", 'bits = 4\nintermediate = true\ncalibration = "text.txt"\nsamples = 4'
    )
    assert box.doit("base:tiny", "adapter:tuned").code == 0
    said = json.loads(box.doit("plan", "m_tuned", "--json").out)
    assert [one["targets"] for one in said["passes"]] == [["m_f16"], ["m_4bit"]]
    (step,) = said["learned"]
    assert (step["source"], step["start"]) == ("m_f16", "m_4bit")
    assert "then dwq makes m_tuned of m_f16 and m_4bit (" in box.doit("plan", "m_tuned").out
    assert made(run(box, "model:m_tuned")) == {"m_f16", "m_4bit", "m_tuned"}
    assert [path.name for path in (box.root / "store/models").iterdir()] == ["m_tuned"]
    before = contents(box, "m_tuned")
    assert made(run(box, "model:m_tuned")) == set()
    shard = box.view("m_tuned") / "model-00002-of-00006.safetensors"
    shard.chmod(0o644)
    shard.write_bytes(before[shard.name][:-1] + bytes([before[shard.name][-1] ^ 1]))
    ran = run(box, "verify", "--repair")
    assert ran.code == 0, ran.text
    assert contents(box, "m_tuned") == before


@pytest.mark.slow
def test_what_is_said_of_a_start(box: Sandbox) -> None:
    assert made(run(box, "model:m_f16", "model:m_4bit")) == {"m_f16", "m_4bit"}
    box.toml.write_text(box.toml.read_text() + '[build]\nmemory = "100kB"\n')
    ran = run(box, "model:m_tuned")  # NoMemoryWhole
    assert ran.code == 2
    assert 'm_tuned: method "dwq" holds m_f16 and m_4bit in memory, at least ' in ran.text
    assert "but [build] memory is 100 kB. [NoMemoryWhole]" in ran.text
    assert not box.view("m_tuned").exists()
    box.edit('[build]\nmemory = "100kB"\n', "")
    assert made(run(box, "model:m_tuned")) == {"m_tuned"}

    box.edit("bits = 4", "bits = 3")
    assert "what its codes are taken from changed" in box.doit("why", "m_tuned").out
    box.edit("bits = 3", "bits = 8")
    ran = run(box, "model:m_tuned")
    assert ran.code == 2
    assert (
        '[variant.tuned] method "dwq" tunes affine weights of fewer than 8 bits, and m_4bit has none.'
        in ran.text
    )
    assert "Traceback" not in ran.text


@pytest.mark.slow
def test_a_text_that_is_too_short(box: Sandbox) -> None:
    (box.root / "text.txt").write_text("short")
    ran = run(box, "model:m_tuned")
    assert ran.code == 2
    assert 'm_tuned: method "dwq" failed: ' in ran.text
    assert "text.txt: it holds fewer than 32 tokens (one sequence)." in ran.text
    assert "Traceback" not in ran.text
    assert not box.view("m_tuned").exists()
