"""An adapter that is declared with `train`, trained as a user trains it: by doit, in a real store."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from builder.build.training import train_adapter
from builder.project.project import Project
from builder.training.request import TrainingFailed
from tests.conftest import PATIENCE, Sandbox
from tests.tiny import make_base

DECLARATION = """\
[base.tiny]
path = "base"

[adapter.tuned]
base = "tiny"

[adapter.tuned.train]
data = "data"
rank = 4
dropout = 0.1
layers = 2
iterations = 12
batch_size = 2
learning_rate = 1e-3
max_length = 64
steps_per_eval = 5
save_every = 4

[variant.4bit]
bits = 4

[model.m]
adapter = "tuned"
variants = ["4bit"]
"""


def rows(number: int) -> str:
    words = ("red", "green", "blue")
    found = []
    for index in range(number):
        said = [("user", f"colour {index}?"), ("assistant", words[index % 3])]
        found.append({"messages": [{"role": role, "content": text} for role, text in said]})
    return "".join(json.dumps(row) + "\n" for row in found)


@pytest.fixture
def box(sandbox: Callable[[str], Sandbox]) -> Sandbox:
    made = sandbox(DECLARATION)
    make_base(made.root / "base")
    (made.root / "data").mkdir()
    (made.root / "data" / "train.jsonl").write_text(rows(9))
    (made.root / "data" / "valid.jsonl").write_text(rows(4))
    return made


def adapters(box: Sandbox) -> dict[str, bytes]:
    """Key -> the bytes of each trained adapter in the store."""
    return {
        folder.name: (folder / "adapters.safetensors").read_bytes()
        for folder in (box.root / "store" / "adapters").iterdir()
    }


def test_training_is_a_target(box: Sandbox) -> None:
    """One run makes the adapter and its targets, and the next one knows that."""
    made = box.doit()
    assert made.code == 0, made.text
    assert "kept step" in made.text
    assert "1 row in no batch" in made.text
    assert box.view("m_4bit").is_dir()
    assert len(adapters(box)) == 1
    assert box.doit().out.count("-- ") == 3  # base, adapter, model: all up to date
    with (box.root / "data" / "train.jsonl").open("a") as file:
        file.write(rows(1))
    assert "train.jsonl changed" in box.builder("why", "m_4bit").text


@pytest.mark.slow
def test_it_trains_when_the_rows_or_a_setting_changed(box: Sandbox) -> None:
    assert box.doit("base:tiny").code == 0
    assert "not trained" in box.builder("status").out
    assert box.doit().code == 0
    [key] = adapters(box)
    box.edit("rank = 4", "rank = 2")
    assert "rank 4 -> 2" in box.builder("status", "--json").out
    again = box.doit()
    assert again.code == 0, again.text
    assert len(adapters(box)) == 2
    box.edit("rank = 2", "rank = 4")
    box.edit("save_every = 4", "save_every = 5")
    back = box.doit()
    assert back.code == 0
    assert "training on" not in back.text
    gone = box.builder("gc", "--grace", "0")
    assert gone.code == 0, gone.text
    assert list(adapters(box)) == [key]
    assert box.builder("verify").code == 0


@pytest.mark.slow
def test_killed_in_the_middle_it_gives_the_same_bytes(box: Sandbox, tmp_path: Path) -> None:
    assert box.doit("adapter:tuned").code == 0
    [undisturbed] = adapters(box).values()
    box.toml.write_text(f'[store]\npath = "other"\n\n{DECLARATION}')
    command = [sys.executable, "-m", "doit", "adapter:tuned"]
    run = subprocess.Popen(command, cwd=box.root, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    ends = time.monotonic() + PATIENCE
    actions = box.root / "other" / "actions"
    while not any("checkpoint" in path.read_text() for path in actions.rglob("*") if path.is_file()):
        assert time.monotonic() < ends
        assert run.poll() is None
        time.sleep(0.005)
    run.kill()
    run.wait()
    assert not (box.root / "other" / "adapters").exists()
    again = box.doit("adapter:tuned")
    assert again.code == 0, again.text
    assert "going on after step" in again.text
    [folder] = (box.root / "other" / "adapters").iterdir()
    assert (folder / "adapters.safetensors").read_bytes() == undisturbed


def test_rows_that_cannot_be_trained_on_are_named(box: Sandbox) -> None:
    with (box.root / "data" / "train.jsonl").open("a") as file:
        file.write('{"question": "x"}\n')
    made = box.doit("adapter:tuned")
    assert made.code == 2, made.text
    assert "adapter.tuned.train: train.jsonl, line 10: a row has `messages`" in made.err
    assert "[TrainingInvalid]" in made.err
    assert "Traceback" not in made.err
    assert not (box.root / "store" / "adapters").exists()


def test_a_training_process_that_dies_is_one_line(
    box: Sandbox, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    killer = tmp_path / "python"
    killer.write_text("#!/bin/sh\nkill -9 $$\n")
    killer.chmod(0o755)
    assert box.doit("base:tiny").code == 0
    project = Project.load(box.toml)
    monkeypatch.setattr("builder.training.process.sys.executable", str(killer))
    adapter = project.spec.adapters["tuned"]
    assert adapter.train is not None
    with pytest.raises(TrainingFailed, match="adapter:tuned: the training process ended with -9"):
        train_adapter(project, adapter, adapter.train, lambda event: None)
    assert not (box.root / "store" / "adapters").exists()


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_with_the_step_and_the_row(box: Sandbox) -> None:
    """A row that is cut before its answer begins teaches nothing. Alone in a batch, its loss is 0 / 0."""
    asked = [{"role": "user", "content": "x" * 90}, {"role": "assistant", "content": "y"}]
    with (box.root / "data" / "train.jsonl").open("a") as file:
        file.write(json.dumps({"messages": asked}) + "\n")
    box.edit("batch_size = 2", "batch_size = 1\nmask_prompt = true")
    made = box.doit("adapter:tuned")
    assert made.code == 2, made.text
    assert "train.jsonl: 1 row longer than 64 tokens will be cut (line 10)" in made.text
    assert "train.jsonl: 1 row where nothing is left to learn (line 10)" in made.text
    assert re.search(
        r"training stopped at step \d+: the loss of the row in line 10 of train.jsonl is nan", made.text
    )
    assert "make max_length larger" in made.text
    assert "[TrainingStopped]" in made.err
    assert not (box.root / "store" / "adapters").exists()


OTHER_WAYS: dict[str, tuple[str, dict[str, object]]] = {
    "as it is": ("", {}),
    "dora": ("type = 'dora'\n", {"fine_tune_type": "dora"}),
    "full": ("type = 'full'\n", {"fine_tune_type": "full"}),
    "schedule": (
        "schedule = { name = 'cosine_decay', arguments = [1e-3, 12], warmup = 3 }\n",
        {"lr_schedule": {"name": "cosine_decay", "arguments": [1e-3, 12], "warmup": 3}},
    ),
    "accumulated": (
        "optimizer = 'adamw'\ngrad_accumulation_steps = 2\ngrad_checkpoint = true\n",
        {"optimizer": "adamw", "grad_accumulation_steps": 2, "grad_checkpoint": True},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(("said", "configured"), OTHER_WAYS.values(), ids=OTHER_WAYS)
def test_it_is_what_mlx_lm_lora_trains(box: Sandbox, said: str, configured: Mapping[str, object]) -> None:
    """The last adapter, bit for bit, where mlx multiplies with its own BLAS and the base is float32."""
    import mlx.core as mx

    for file in (box.root / "base").glob("*.safetensors"):
        loaded = mx.load(str(file))
        assert isinstance(loaded, dict)
        tensors = {name: array.astype(mx.float32) for name, array in loaded.items()}
        mx.eval(tensors)
        mx.save_safetensors(str(file), tensors, metadata={"format": "pt"})
    box.edit("rank = 4", f"rank = 4\n{said}mask_prompt = true\nkeep = 'last'\nval_batches = 1")
    if "full" in said:  # a full fine-tune has no pairs of matrices
        box.edit("rank = 4\n", "")
        box.edit("dropout = 0.1\n", "")
    if "schedule" in said:
        box.edit("learning_rate = 1e-3\n", "")
    made = box.doit(env={"BUILDER_BLAS": "mlx"})
    assert made.code == 0, made.text
    [ours] = adapters(box).values()
    config = {
        "lora_parameters": {"rank": 4, "scale": 20.0, "dropout": 0.1},
        "learning_rate": 1e-3,
        "steps_per_eval": 5,
        **configured,
    }
    (box.root / "lora.yaml").write_text(json.dumps(config))
    options = "--iters 12 --batch-size 2 --num-layers 2 --max-seq-length 64 --val-batches 1 --mask-prompt"
    command = f"-m mlx_lm lora --train -c lora.yaml --model base --data data --adapter-path theirs {options}"
    theirs = box.run(sys.executable, *command.split())
    assert theirs.code == 0, theirs.text
    found = mx.load(str(box.root / "theirs" / "adapters.safetensors"))
    folder = next((box.root / "store" / "adapters").iterdir())
    expected = mx.load(str(folder / "adapters.safetensors"))
    assert isinstance(found, dict)
    assert isinstance(expected, dict)
    assert ours
    assert found.keys() == expected.keys()
    assert all(mx.array_equal(found[name], expected[name]) for name in found)


@pytest.mark.slow
def test_an_adapter_is_trained_on_the_quantized_base(box: Sandbox) -> None:
    """QLoRA: trained on 4 bits, fused into the unquantized base, and both losses are said."""
    box.edit("rank = 4", 'rank = 4\non = "4bit"')
    made = box.doit()
    assert made.code == 0, made.text
    assert "fused into the unquantized base, the validation loss is" in made.text
    report = box.builder("report", "--json")
    [model] = json.loads(report.out)["models"]
    assert model["training"]["settings"]["on"] == "4-bit, group size 64"
    assert model["training"]["loss"] != model["training"]["fused_loss"]
    assert 4 < model["training"]["fused_loss"] < 6
    page = box.builder("report")
    assert page.code == 0
    assert "Training" in (box.root / "store" / "report" / "report.md").read_text()


SUITE = """\
seeds = [0, 1]

[suite.colours]
kind = "fidelity"
data = "questions.jsonl"
"""


@pytest.mark.slow
def test_several_seeds_are_judged_together(box: Sandbox) -> None:
    """A name for all seeds, the smallest variant that passes with each, and one table in the report."""
    box.edit("save_every = 4\n", "save_every = 4\n" + SUITE)
    box.edit("[variant.4bit]\nbits = 4", "[variant.4bit]\nbits = 4\n[variant.8bit]\nbits = 8")
    box.edit('variants = ["4bit"]', 'variants = ["4bit", "8bit"]\nsuites = ["colours"]\n[model.m.require]\n')
    with (box.root / "artifacts.toml").open("a") as file:
        file.write('"colours.kl" = "<= 0.001"\n')
    (box.root / "questions.jsonl").write_text(rows(4))
    built = box.doit("model:m_8bit")
    assert built.code == 0, built.text
    assert {path.name for path in (box.root / "store" / "models").iterdir()} == {
        "m-seed0_8bit",
        "m-seed1_8bit",
    }
    assert "build m-seed1_4bit" in box.builder("plan", "m").out
    found = box.doit("threshold:m")
    assert found.code == 0, found.text
    assert "8bit is the smallest that passes with every seed" in found.out
    assert re.search(r"variant +size +seed 0 +seed 1 +colours\.kl\n", found.out)
    assert re.search(r"4bit .* misses", found.out)
    seen = re.search(r"8bit +\S+ kB +passes +passes +(\S+) to (\S+)\n", found.out)
    assert seen is not None, found.out
    assert "measuring" not in box.doit("threshold:m").text
    report = box.builder("report", "m", "--json")
    [seeds] = json.loads(report.out)["seeds"]
    assert seeds["chosen"] == "8bit"
    assert seeds["models"] == ["m-seed0", "m-seed1"]
    by_variant = {row["variant"]: row for row in seeds["rows"]}
    assert by_variant["8bit"]["passed"] == 2
    spread = by_variant["8bit"]["spreads"]["colours.kl"]
    assert 0 < spread["least"] < spread["mean"] < spread["most"] < 0.001
    assert seen.groups() == (f"{spread['least']:.3g}", f"{spread['most']:.3g}")
    shown = box.builder("report")
    assert "m: 8bit is the smallest that passes with all 2 seeds" in shown.out
    assert "## m, all 2 seeds" in (box.root / "store" / "report" / "report.md").read_text()
    assert "m, all 2 seeds" in (box.root / "store" / "report" / "index.html").read_text()
