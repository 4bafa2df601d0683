"""Calibrated targets: real builds on the tiny model, what they reuse, and what breaks them."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from builder.build import calibrated, shelves
from builder.build.prepare import prepare_adapter, prepare_base
from builder.console.events import Event, Note
from builder.console.words import size_text
from builder.engine.rounding import walk
from builder.engine.rounding.shelf import Growing
from builder.engine.rounding.text import CalibrationInvalid
from builder.errors import BuildError, EngineError, SourceChanged, SourceMissing, StoreFull
from builder.plan.types import TargetPlan
from builder.project.project import Project
from builder.release.delivery import deliver
from builder.store.care import verify
from tests.build.test_one_pass import ROW
from tests.conftest import PATIENCE, Ran, Sandbox, wait_until
from tests.tiny import BLOCKS, DECLARATION, make_adapter, make_base

Make = Callable[..., Sandbox]
NAME = "m_round"
ROUND = """
[variant.round]
bits = 4
group_size = 32
calibration = "text.jsonl"
samples = 8
sequence_length = 32

[model.plain]
base = "tiny"
variants = ["round"]
"""


def words(seed: int, rows: int = 12) -> str:
    rng = random.Random(seed)
    lines = (" ".join("".join(rng.choices("abcdefgh", k=5)) for _ in range(20)) for _ in range(rows))
    return "\n".join(json.dumps({"messages": [{"role": "user", "content": line}]}) for line in lines)


def fill(box: Sandbox, layers: int = 4) -> Sandbox:
    make_base(box.root / "base", layers=layers)
    make_adapter(box.root / "adapter", layers=(layers - 2, layers - 1))
    (box.root / "text.jsonl").write_text(words(0))
    return box


@pytest.fixture
def project(sandbox: Make) -> Sandbox:
    return fill(sandbox(DECLARATION.replace('"5bit"]', '"5bit", "round"]') + ROUND))


def build(box: Sandbox, name: str = NAME, seen: list[Event] | None = None) -> int:
    """Builds a target in this process, and returns how many blocks were made."""
    heard = [] if seen is None else seen
    loaded = Project.load(box.toml)
    prepare_base(loaded, loaded.spec.bases["tiny"], heard.append)
    prepare_adapter(loaded, loaded.spec.adapters["tuned"], heard.append)
    return sum(made.made for made in deliver(loaded, name, {name}, (), heard.append))


def weights(box: Sandbox, name: str = NAME) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(box.view(name).glob("*.safetensors"))}


def rows(ran: Ran) -> dict[str, int]:
    assert ran.code == 0, ran.text
    return {name: int(made) for name, made, _ in ROW.findall(ran.out)}


def records(box: Sandbox) -> dict[Path, int]:
    return {file: file.stat().st_mtime_ns for file in (box.root / "store/actions").glob("*/*")}


@pytest.mark.slow
def test_a_life_of_a_calibrated_target(project: Sandbox) -> None:
    box = project
    assert box.doit("base:tiny", "adapter:tuned").code == 0
    planned = json.loads(box.doit("plan", "--json", f"model:{NAME}").out)
    assert rows(box.doit(f"model:{NAME}")) == {NAME: BLOCKS}
    assert planned["passes"] or planned["learned"], planned
    assert rows(box.doit(f"model:{NAME}")) == {}  # nothing to do
    assert not box.view("m_f16").exists()  # never written
    config = json.loads((box.view(NAME) / "config.json").read_text())
    assert (config["quantization"]["bits"], config["quantization"]["group_size"]) == (4, 32)
    status = box.doit("status", NAME)
    assert status.code == 0, status.text
    assert "text.jsonl" not in box.doit("why", NAME).err
    assert box.doit("verify").code == 0
    assert box.doit("gc").code == 0
    assert rows(box.doit(f"model:{NAME}")) == {}

    (box.root / "text.jsonl").write_text(words(1))
    why = box.doit("why", NAME)
    assert "calibration changed" in why.out
    assert "what comes before" not in why.out
    before = weights(box)
    assert rows(box.doit(f"model:{NAME}")) == {NAME: BLOCKS}
    assert weights(box) != before
    (box.root / "text.jsonl").write_text(words(0))
    assert rows(box.doit(f"model:{NAME}")) == {NAME: 0}  # relinked: the former blocks are still there
    assert weights(box) == before
    box.edit("samples = 8", "samples = 4")
    assert "samples 8 -> 4" in box.doit("why", NAME).out


def test_mlx_lm_loads_it(project: Sandbox) -> None:
    assert build(project) == BLOCKS
    assert not project.view("m_f16").exists()  # never written

    from mlx_lm import load, stream_generate

    model, tokenizer, *_ = load(str(project.view(NAME)))
    assert mx.isfinite(model(mx.array([tokenizer.encode("some words")]))).all()
    said = list(stream_generate(model, tokenizer, "some words", max_tokens=4))
    assert said[-1].finish_reason in ("length", "stop")
    assert build(project) == 0


def test_a_head_that_is_the_embedding_is_measured_once_for_all_targets(sandbox: Make) -> None:
    """Another text is measured anew, and what is kept gives the same bytes."""
    three = ROUND.partition("[model.plain]")[0].replace(
        "[variant.round]\nbits = 4", "[variant.three]\nbits = 3"
    )
    box = fill(sandbox(DECLARATION.replace('"5bit"]', '"5bit", "round", "three"]') + ROUND + three))
    heard: list[Event] = []

    def runs() -> int:
        return sum(isinstance(each, Note) and "runs once" in each.text for each in heard)

    calibrated._HEADS.clear()
    build(box, NAME, heard)
    build(box, "m_three", heard)
    assert runs() == 1
    first = weights(box, "m_three")
    shutil.rmtree(box.root / "store")
    calibrated._HEADS.clear()
    build(box, "m_three", heard)
    assert runs() == 2
    assert weights(box, "m_three") == first
    (box.root / "text.jsonl").write_text(words(1))
    build(box, "m_three", heard)
    assert runs() == 3


def test_hidden_states_on_the_disk_give_the_same_bytes(
    project: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(project.root, tmp_path / "other")
    other, seen = Sandbox(tmp_path / "other"), list[Event]()
    monkeypatch.setattr(walk, "TOKENS", 64)
    assert build(project) == BLOCKS
    monkeypatch.setattr(shelves, "memory_for", lambda _: 0)
    assert build(other, seen=seen) == BLOCKS
    assert weights(project) == weights(other)
    told = [event.text for event in seen if isinstance(event, Note) and "went over the disk" in event.text]
    assert told == [f"{NAME}: {size_text(4 * 8 * 32 * 128 * 4)} of hidden states went over the disk"]
    nothing_is_left(other)


def test_a_disk_that_is_too_full_for_hidden_states(project: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "")

    monkeypatch.setattr(walk, "TOKENS", 64)
    monkeypatch.setattr(shelves, "memory_for", lambda _: 0)
    monkeypatch.setattr(Growing, "add", full)
    refused(project, StoreFull, "No space left on device")
    nothing_is_left(project)


@pytest.mark.slow
def test_two_stores_get_identical_bytes(project: Sandbox, tmp_path: Path) -> None:
    shutil.copytree(project.root, tmp_path / "other")
    other = Sandbox(tmp_path / "other")
    assert build(project) == build(other) == BLOCKS
    assert weights(project) == weights(other)


def test_an_adapter_on_late_layers_reuses_the_early_blocks(project: Sandbox) -> None:
    box = project
    assert build(box, "plain_round") == BLOCKS
    seen: list[Event] = []
    assert build(box, NAME, seen) == BLOCKS - 3  # layers 2 and 3, and the norm behind them
    notes = [event.text for event in seen if isinstance(event, Note)]
    assert f"{NAME}: 3 blocks to round for text.jsonl" in notes
    one, other = weights(box, "plain_round"), weights(box)
    assert [n for n in one if one[n] == other[n]] == [
        *(f"model-0000{number}-of-00006.safetensors" for number in (1, 2, 3, 6))
    ]
    make_adapter(box.root / "adapter", layers=(2, 3), seed=8)
    assert build(box) == BLOCKS - 3
    make_adapter(box.root / "adapter", layers=(3,), seed=8)
    assert build(box) == BLOCKS - 4


@pytest.mark.slow
def test_a_killed_build_goes_on_at_the_first_missing_block(project: Sandbox) -> None:
    box = fill(project, layers=24)
    assert box.doit("base:tiny", "adapter:tuned").code == 0
    former = len(records(box))
    process = subprocess.Popen(
        [sys.executable, "-m", "doit", f"model:{NAME}"],
        cwd=box.root,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    wait_until(lambda: len(records(box)) >= former + 8, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    kept = records(box)
    assert not box.view(NAME).exists()
    made = rows(box.doit(f"model:{NAME}"))[NAME]
    finished = len(kept) - former - 1  # without the record of config.json
    assert made == 26 - finished
    assert 0 < made <= 19
    assert {file: time for file, time in records(box).items() if file in kept} == kept
    assert box.doit("verify").code == 0
    expected = weights(box)
    shutil.rmtree(box.root / "store")
    assert build(box) == 26
    assert weights(box) == expected


@pytest.mark.slow
def test_two_processes_make_one_truth(project: Sandbox) -> None:
    box = project
    assert box.doit("base:tiny", "adapter:tuned").code == 0
    runs = [
        subprocess.Popen(
            [sys.executable, "-m", "doit", f"model:{NAME}"],
            cwd=box.root,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    outputs = [run.communicate(timeout=PATIENCE) for run in runs]
    assert [run.returncode for run in runs] == [0, 0], outputs
    assert sum(int(made) for out, _ in outputs for _, made, _ in ROW.findall(out)) == BLOCKS
    assert box.doit("verify").code == 0
    assert json.loads((box.view(NAME) / "config.json").read_text())["quantization"]["bits"] == 4


@pytest.mark.slow
@pytest.mark.parametrize("number", [2, 5])
def test_a_damaged_blob_is_made_again(number: int, project: Sandbox) -> None:
    box = project
    assert build(box) == BLOCKS
    expected = weights(box)
    shard = box.view(NAME) / f"model-0000{number}-of-00006.safetensors"
    shard.chmod(0o644)
    shard.write_bytes(expected[shard.name][:-1] + bytes([expected[shard.name][-1] ^ 1]))
    ran = box.doit("verify", "--repair")
    assert ran.code == 0, ran.text
    assert weights(box) == expected
    assert box.doit("verify").code == 0
    assert box.doit("status", NAME).code == 0


# -- texts and tokenizers -----------------------------------------------------------------------------------


def refused(box: Sandbox, kind: type[BuildError], says: str) -> None:
    with pytest.raises(kind, match=says) as caught:
        build(box)
    assert "\n" not in caught.value.message
    assert not box.view(NAME).exists()


def nothing_is_left(box: Sandbox) -> None:
    store = Project.load(box.toml).store
    assert not list(store.tmp.iterdir())
    assert verify.verify(store).is_clean


def test_a_text_that_is_not_there(project: Sandbox) -> None:
    (project.root / "text.jsonl").unlink()
    refused(project, SourceMissing, "variant.round: .*text.jsonl")
    ran = project.doit(f"model:{NAME}")
    assert ran.code != 0
    assert "Traceback" not in ran.text
    assert rows(project.doit("model:m_4bit")) == {"m_4bit": BLOCKS}  # others are built


def test_a_text_that_is_too_short(project: Sandbox) -> None:
    (project.root / "text.jsonl").write_text('{"text": "ab"}')
    refused(project, CalibrationInvalid, "^variant.round: text.jsonl: it holds fewer than 32 tokens")
    nothing_is_left(project)


def test_a_text_that_is_replaced_before_it_is_read(project: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    real = calibrated.open_sequences

    def late(project: Project, plan: TargetPlan) -> Any:
        (project.spec.file.parent / "text.jsonl").write_text(words(1))
        return real(project, plan)

    monkeypatch.setattr(calibrated, "open_sequences", late)
    assert project.doit("base:tiny", "adapter:tuned").code == 0
    former = len(records(project))
    refused(project, SourceChanged, "variant.round: .* changed while it was being read")
    assert len(records(project)) <= former + 1  # config.json, which does not depend on the text
    nothing_is_left(project)


def test_a_base_that_is_replaced_while_blocks_are_rounded(
    project: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = calibrated._writer

    def late(project: Project, *rest: Any) -> Any:
        write = real(project, *rest)

        def then(block: str, made: Any) -> Path:
            if block == "model.layers.2":
                make_base(project.spec.file.parent / "base", seed=5)
            return write(block, made)

        return then

    monkeypatch.setattr(calibrated, "_writer", late)
    refused(project, SourceChanged, "base:tiny: .* changed while it was being read")
    nothing_is_left(project)


CODE = """
from pathlib import Path

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast


class Mine(PreTrainedTokenizerFast):
    def __init__(self, name_or_path="", tokenizer_file=None, **settings):
        made = Tokenizer.from_file(str(Path(name_or_path) / "vocabulary.json"))
        super().__init__(tokenizer_object=made, name_or_path=name_or_path, **settings)
"""


def test_a_tokenizer_with_code_of_its_own(project: Sandbox) -> None:
    box = project
    build(box)
    expected = weights(box)
    shutil.rmtree(box.root / "store")
    settings = box.root / "base/tokenizer_config.json"
    auto = {"AutoTokenizer": ["mine.Mine", "mine.Mine"]}
    settings.write_text(
        json.dumps({**json.loads(settings.read_text()), "tokenizer_class": "Mine", "auto_map": auto})
    )
    (box.root / "base/mine.py").write_text(CODE)
    (box.root / "base/tokenizer.json").rename(box.root / "base/vocabulary.json")
    refused(box, EngineError, f"^{NAME}: its tokenizer cannot be loaded: ")
    box.edit('path = "base"', 'path = "base"\ntrust_remote_code = true')
    assert build(box) == BLOCKS
    assert weights(box) == expected
    nothing_is_left(box)


@pytest.mark.slow
def test_the_models_own_code_is_trusted_where_the_base_is(project: Sandbox) -> None:
    box = project
    config = box.root / "base/config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "model_file": "mine.py"}))
    (box.root / "base/mine.py").write_text("from mlx_lm.models.qwen3 import Model, ModelArgs\n")
    box.edit('path = "base"', 'path = "base"\ntrust_remote_code = true')
    assert build(box) == BLOCKS


@pytest.mark.slow
def test_the_tokenizer_of_the_adapter_is_used(project: Sandbox) -> None:
    box = project
    build(box)
    expected = weights(box)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(box.root / "base" / name, box.root / "adapter" / name)
    (box.root / "adapter/chat_template.jinja").write_text(
        "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    )
    box.edit('path = "adapter"', 'path = "adapter"\ntokenizer = "adapter"')
    assert build(box) == BLOCKS  # another template: other tokens
    assert weights(box) != expected


def test_a_mode_without_a_grid_is_told(project: Sandbox) -> None:
    project.edit("bits = 4\ngroup_size = 32\ncalibration", 'bits = 4\nmode = "mxfp4"\ncalibration')
    seen: list[Event] = []
    assert build(project, NAME, seen) == BLOCKS
    notes = [event.text for event in seen if isinstance(event, Note)]
    assert f"{NAME}: 29 weights rounded to nearest, as mlx does" in notes
