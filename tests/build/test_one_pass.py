"""Real doit runs: what is built, and what is not, after each kind of change."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from builder import Project
from builder.build.waiting import waiting
from builder.console.events import Event, Note
from tests.conftest import PATIENCE, Ran, Sandbox, wait_until
from tests.tiny import BLOCKS, DECLARATION, make_adapter, make_base, save_adapter

Make = Callable[..., Sandbox]
ROW = re.compile(r"^(\S+_\S+) +[\d.]+ [kM]B +[\d.]+ +(\d+) +(\d+) +[\d.]+ *$", re.MULTILINE)


def built(ran: Ran) -> dict[str, int]:
    """target -> blocks built, from the table that doit printed."""
    assert ran.code == 0, ran.text
    return {name: int(made) for name, made, _ in ROW.findall(ran.out)}


@pytest.fixture
def project(sandbox: Make) -> Sandbox:
    box = sandbox(DECLARATION)
    make_base(box.root / "base")
    make_adapter(box.root / "adapter")
    return box


@pytest.fixture
def done(project: Sandbox) -> Sandbox:
    """A project whose default targets are built."""
    assert built(project.doit()) == {"m_4bit": BLOCKS, "m_5bit": BLOCKS - 1}  # they share the final norm
    return project


def test_first_build_then_nothing(done: Sandbox) -> None:
    again = done.doit()
    assert built(again) == {}
    assert "-- model:m_4bit" in again.out
    assert "-- model:m_5bit" in again.out
    assert not done.view("m_f16").exists()  # an intermediate is not built for its own sake


def test_touch_rebuilds_nothing(done: Sandbox) -> None:
    for file in [*done.root.glob("base/*"), *done.root.glob("adapter/*")]:
        os.utime(file)
    assert built(done.doit()) == {}


def test_a_build_with_nothing_to_do_counts_as_a_use(done: Sandbox) -> None:
    """gc drops the least recently used target first: one that is asked for each day is not that."""
    manifests = [*done.root.glob("store/targets/*.toml")]
    assert len(manifests) == 2
    for file in manifests:
        os.utime(file, (1_700_000_000, 1_700_000_000))
    assert built(done.doit("model:m_5bit")) == {}
    used = [file for file in manifests if file.stat().st_mtime > 1_700_000_000]
    assert len(used) == 1


def test_another_end_of_text_reaches_config_json_and_rebuilds_no_block(done: Sandbox) -> None:
    """mlx_lm.utils.load_config takes eos_token_id from generation_config.json."""
    before = json.loads((done.view("m_4bit") / "config.json").read_text())
    assert before["eos_token_id"] == 256
    (done.root / "base/generation_config.json").write_text(json.dumps({"eos_token_id": [256, 7]}))
    assert built(done.doit()) == {"m_4bit": 0, "m_5bit": 0}
    after = json.loads((done.view("m_4bit") / "config.json").read_text())
    assert after == {**before, "eos_token_id": [256, 7]}
    (done.root / "base/generation_config.json").unlink()
    assert built(done.doit()) == {"m_4bit": 0, "m_5bit": 0}
    assert json.loads((done.view("m_4bit") / "config.json").read_text()) == before  # from the base's own


def test_comments_order_and_format_rebuild_nothing(done: Sandbox) -> None:
    tables = DECLARATION.split("\n\n")
    reordered = "\n\n".join([tables[-1], *reversed(tables[:-1])]).replace(" = ", "   =   ")
    done.toml.write_text("# a comment\n" + reordered + "# the end\n")
    assert built(done.doit()) == {}


def test_doit_database_is_only_a_cache(done: Sandbox) -> None:
    for file in done.root.glob(".modelkiln.db*"):
        file.unlink()
    assert built(done.doit()) == {}


def test_a_moved_project_rebuilds_nothing(done: Sandbox) -> None:
    moved = Sandbox(done.root.rename(done.root.with_name("elsewhere")))
    assert built(moved.doit()) == {}


def test_a_changed_setting_rebuilds_only_its_variant(done: Sandbox) -> None:
    done.edit("bits = 4\ngroup_size = 64", "bits = 4\ngroup_size = 32")
    assert built(done.doit()) == {"m_4bit": BLOCKS - 1}


def test_an_override_that_matches_nothing_is_said(done: Sandbox) -> None:
    """The tiny model's head is its embedding; a variant with a rule for heads may serve others too."""
    done.edit(
        "bits = 4\ngroup_size = 64", 'bits = 3\ngroup_size = 64\noverrides = { "lm_head" = { bits = 8 } }'
    )
    said = 'm_4bit: override "lm_head" matches nothing'
    assert said in done.doit("plan").out
    ran = done.doit()
    assert said in ran.err
    assert built(ran) == {"m_4bit": BLOCKS - 1}
    done.edit('"lm_head"', '"model.embed_tokesn"')
    assert 'did you mean "model.embed_tokens"?' in done.doit().text


def test_a_changed_block_of_the_adapter_rebuilds_that_block_of_each_variant(done: Sandbox) -> None:
    import mlx.core as mx

    file = done.root / "adapter" / "adapters.safetensors"
    former = file.read_bytes()
    tensors = dict(mx.load(str(file)))
    tensors["model.layers.3.self_attn.q_proj.lora_a"] *= 1.5
    mx.eval(tensors)
    save_adapter(done.root / "adapter", tensors)
    assert built(done.doit()) == {"m_4bit": 1, "m_5bit": 1}
    file.write_bytes(former)
    assert built(done.doit()) == {"m_4bit": 0, "m_5bit": 0}  # relinked: it was still in the store


def test_a_new_variant_builds_only_itself(done: Sandbox) -> None:
    done.edit('variants = ["f16", "4bit", "5bit"]', 'variants = ["f16", "4bit", "5bit", "8bit"]')
    done.toml.write_text(done.toml.read_text() + "\n[variant.8bit]\nbits = 8\n")
    assert built(done.doit()) == {"m_8bit": BLOCKS - 1}


def test_a_deleted_view_is_relinked(done: Sandbox) -> None:
    shutil.rmtree(done.view("m_4bit"))
    assert built(done.doit()) == {"m_4bit": 0}
    assert (done.view("m_4bit") / "config.json").exists()


def test_a_deleted_blob_runs_only_its_action(done: Sandbox) -> None:
    shard = done.view("m_5bit") / f"model-00003-of-0000{BLOCKS}.safetensors"
    digest = blob_digest(done, "m_5bit", shard.name)
    before = shard.read_bytes()
    (done.root / "store" / "blobs" / digest[:2] / digest).unlink()
    assert built(done.doit()) == {"m_5bit": 1}
    assert shard.read_bytes() == before


def blob_digest(box: Sandbox, target: str, name: str) -> str:
    import tomllib

    manifest = tomllib.loads((box.view(target) / "artifact.toml").read_text())
    return next(file["digest"] for file in manifest["files"] if file["name"] == name)


def test_a_killed_build_resumes(sandbox: Make) -> None:
    box = sandbox(DECLARATION)
    make_base(box.root / "base", layers=60)
    make_adapter(box.root / "adapter")
    actions = box.root / "store" / "actions"
    process = subprocess.Popen(
        [sys.executable, "-m", "doit", "model:m_5bit"],
        cwd=box.root,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    wait_until(lambda: len(list(actions.glob("*/*"))) >= 15, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    finished = {file: file.stat().st_mtime_ns for file in actions.glob("*/*")}
    assert len(finished) >= 15
    assert not box.view("m_5bit").exists()
    made = built(box.doit("model:m_5bit"))["m_5bit"]
    assert 0 < made <= 62 - (len(finished) - 2)  # all but the records of structure and config are blocks
    assert {file: file.stat().st_mtime_ns for file in finished} == finished  # nothing was done again


def test_clean_drops_bytes_and_keeps_records(done: Sandbox) -> None:
    assert built(done.doit("model:m_f16"))["m_f16"] == BLOCKS
    assert (done.view("m_f16") / "config.json").exists()
    dropped = done.doit("clean:f16")
    assert dropped.code == 0
    assert "dropped m_f16" in dropped.err
    assert not done.view("m_f16").exists()
    assert built(done.doit()) == {}
    assert not done.view("m_f16").exists()
    assert "not kept: its bytes were dropped" in done.doit("info", "model:m_f16").out


def test_list_and_info(done: Sandbox) -> None:
    listed = done.doit("list", "--all").out
    assert re.search(r"model:m_5bit +tiny \+ tuned, 5-bit, group size 64", listed)
    assert "clean:f16" in listed
    info = done.doit("info", "model:m_5bit").out
    assert "up-to-date" in info
    done.edit("bits = 5\ngroup_size = 64", "bits = 5\ngroup_size = 32")
    assert "group_size 64 -> 32" in done.doit("info", "model:m_5bit").out


@pytest.mark.parametrize("arguments", [["-n", "2"], ["-n", "2", "-P", "thread"], ["--continue"]])
def test_parallel_and_continue(project: Sandbox, arguments: list[str]) -> None:
    ran = project.doit(*arguments)
    assert ran.code == 0, ran.text
    assert built(project.doit()) == {}
    for target in ("m_4bit", "m_5bit"):
        assert (project.view(target) / "config.json").exists()


def test_two_runs_at_once_build_each_action_once(sandbox: Make) -> None:
    box = sandbox(DECLARATION)
    make_base(box.root / "base", layers=40)
    make_adapter(box.root / "adapter")
    runs = [
        subprocess.Popen(
            [sys.executable, "-m", "doit", "model:m_5bit"],
            cwd=box.root,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    outputs = [run.communicate(timeout=PATIENCE) for run in runs]
    assert [run.returncode for run in runs] == [0, 0], outputs
    rows = [int(made) for out, _ in outputs for _, made, _ in ROW.findall(out)]
    assert sum(rows) == 42
    assert all(err.count("waiting for another run") <= 1 for _, err in outputs), outputs


def test_a_run_alone_does_not_say_that_it_waits(sandbox: Make) -> None:
    """Its own blocks share locks."""
    box = sandbox(DECLARATION)
    make_base(box.root / "base", layers=60)
    make_adapter(box.root / "adapter", layers=(0,))
    ran = box.doit()
    assert ran.code == 0, ran.text
    assert "waiting" not in ran.text


def test_one_wait_for_many_blocks_is_said_once() -> None:
    said: list[Event] = []
    say = waiting("m", said.append)
    for _ in range(7):
        say()
    assert said == [Note("m: waiting for another run, which builds the same")]


HOLD = """
import sys
from pathlib import Path
from builder.keys import Key
from builder.store import locks
from builder.store.format import open_store
with locks.acquire(open_store(Path("store")), [Key(f"{stripe:02x}") for stripe in range(locks.STRIPES)]):
    print("holding", flush=True)
    sys.stdin.readline()
"""


def holding(box: Sandbox) -> subprocess.Popen[str]:
    """Another process that holds all locks of the store, until it is sent a line."""
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD],
        cwd=box.root,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "holding\n"
    return other


def test_a_run_says_what_it_waits_for(project: Sandbox) -> None:
    assert project.doit("base:tiny").code == 0
    other = holding(project)
    said: list[str] = []

    def heard(event: Event) -> None:
        if isinstance(event, Note) and "waiting" in event.text:
            said.append(event.text)
            other.communicate("\n")

    made = Project(project.root / "artifacts.toml").build(emit=heard)
    assert [each.made for each in made] == [BLOCKS, BLOCKS - 1]
    assert said == ["m: waiting for another run, which builds the same"]


def test_dash_a_runs_and_finds_everything(done: Sandbox) -> None:
    assert built(done.doit("-a", "model:m_5bit")) == {"m_5bit": 0}


def test_no_op_does_not_import_mlx_lm(done: Sandbox) -> None:
    probe = (
        "import sys; from doit.doit_cmd import DoitMain; DoitMain().run(sys.argv[1:]);"
        "print([m for m in ('mlx', 'mlx_lm', 'transformers', 'numpy') if m in sys.modules])"
    )
    for arguments in (["list"], ["model:m_5bit"]):
        assert "[]" in done.run(sys.executable, "-c", probe, *arguments).out


def test_the_view_equals_mlx_lm(done: Sandbox, tmp_path: Path) -> None:
    """Every tensor and the quantization of config.json equal mlx_lm.fuse + mlx_lm.convert."""
    from tests.reference import assert_same_model, reference

    made = reference(done.root / "base", done.root / "adapter", tmp_path / "ref", q_bits=5, q_group_size=64)
    assert_same_model(done.view("m_5bit"), made)
    config = json.loads((done.view("m_5bit") / "config.json").read_text())
    assert config["quantization"] == {"group_size": 64, "bits": 5, "mode": "affine"}
