"""What a person meets every day: tables that fit, answers each time, names that work, folders, one pass."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import PATIENCE, Ran, Sandbox, make_sandbox
from tests.evaluate.test_run import project
from tests.release.test_production import RELEASE
from tests.terminal import in_terminal
from tests.tiny import DECLARATION, make_adapter, make_base

REQUIRED = '["fidelity", "calls"]'


def measured_project(root: Path) -> Sandbox:
    """Two suites that score, one requirement that every target meets, and a release."""
    box = project(lambda text, *_: make_sandbox(root, text + RELEASE))
    box.edit('["routing", "calls", "ppl", "fidelity", "said", "own"]', REQUIRED)
    box.edit('"routing.accuracy" = ">= 0"', '"fidelity.kl" = "<= 100"')
    return box


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Sandbox:
    """Built and measured: m_4bit and m_5bit."""
    box = measured_project(tmp_path_factory.mktemp("daily") / "project")
    ran = box.doit("eval")
    assert ran.code == 0, ran.text
    return box


@pytest.fixture
def box(template: Sandbox, tmp_path: Path) -> Sandbox:
    root = tmp_path / "project"
    shutil.copytree(template.root, root, symlinks=True, copy_function=shutil.copy2)
    return Sandbox(root)


def document(ran: Ran) -> dict[str, Any]:
    """Standard output, which is one JSON document and nothing else."""
    return dict(json.loads(ran.out))


# -- tables --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [80, 40])
@pytest.mark.parametrize("command", ["status", "report", "eval", "threshold:m", "plan"])
def test_the_first_column_is_never_cut(box: Sandbox, command: str, columns: int) -> None:
    if command == "plan":
        box.edit("bits = 4", "bits = 6")
    ran = in_terminal(box, "builder", command, columns=columns)
    assert ran.code in (0, 1), ran.out
    wanted = {"report": ["4bit ", "5bit "], "eval": ["fidelity.kl ", "calls.rate "], "plan": ["model "]}
    for word in wanted.get(command, ["m_4bit ", "m_5bit "]):
        assert any(line.startswith(word) for line in ran.out.splitlines()), ran.out
    tables = [line for line in ran.out.splitlines() if "  " in line and not line.startswith("store")]
    assert max(map(len, tables)) <= columns, ran.out


def test_the_least_important_columns_go_first(box: Sandbox) -> None:
    wide = in_terminal(box, "builder", "status", columns=140).out.splitlines()[0].split()
    narrow = in_terminal(box, "builder", "status", columns=60).out.splitlines()[0].split()
    assert "reused" in wide
    assert "bits/w" in wide
    assert {"target", "state", "result"} <= set(narrow)
    assert "reused" not in narrow


# -- answers -------------------------------------------------------------------------------------------------


def test_an_evaluation_shows_its_answer_each_time(box: Sandbox) -> None:
    for command in (("eval:m_4bit",), ("run", "eval:m_4bit")):
        ran = box.doit(*command)
        assert "-- eval:m_4bit" in ran.out
        assert "fidelity.kl" in ran.out
        assert "m_4bit passes: fidelity.kl <= 100" in ran.out
    assert "passes" not in box.doit("-q", "eval:m_4bit").out
    box.edit('"<= 100"', '"<= -1"')
    ran = box.doit("eval:m_4bit")
    assert ran.code == 1
    assert "fidelity.kl" in ran.out
    assert "passes" not in ran.out
    assert "m_4bit misses its requirements: fidelity.kl <= -1" in ran.err


def test_a_release_says_what_production_is(box: Sandbox) -> None:
    assert "production is now m_4bit" in box.doit("release:production").err
    assert "production is m_4bit already" in box.doit("release:production").out


def test_one_word_for_one_state(box: Sandbox) -> None:
    """status, eval, threshold and report say the same of the same target."""
    assert "passes" in row_of(box.doit("status").out, "m_4bit")
    assert "passes" in row_of(box.doit("threshold:m").out, "m_4bit")
    assert "passes" in row_of(box.doit("report").out, "4bit")
    assert "not kept" in row_of(box.doit("status").out, "m_f16")
    box.edit('"<= 100"', '"<= -1"')
    assert "misses" in row_of(box.doit("status").out, "m_4bit")
    assert "misses" in row_of(box.doit("report").out, "4bit")
    states = {row["target"]: row for row in document(box.doit("status", "--json"))["targets"]}
    assert (states["m_f16"]["state"], states["m_4bit"]["verdict"]) == ("not kept", "misses")


def row_of(text: str, target: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(f"{target} "))


def test_progress_names_what_runs(box: Sandbox) -> None:
    shutil.rmtree(box.root / "store")
    ran = box.doit("run", "--progress", "json", "eval:m_4bit")
    events = [json.loads(line) for line in ran.err.splitlines() if line.startswith("{")]
    assert {e["target"] for e in events if e["event"] == "Scored"} == {"m, unquantized", "m_4bit"}


# -- one pass ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [(), ("-f", "dodo.py")], ids=str)
def test_one_pass_where_doit_does_not_know_the_plugin(tmp_path: Path, command: tuple[str, ...]) -> None:
    box = make_sandbox(tmp_path / "project", DECLARATION)
    make_base(box.root / "base")
    make_adapter(box.root / "adapter")
    (box.root / "pyproject.toml").unlink()
    ran = box.doit(*command)
    assert ran.code == 0, ran.text
    assert ran.err.count("to make") == 1, ran.text
    assert "m: 4bit, 5bit: 11 blocks to make, 0 reused" in ran.err


def test_another_reporter_is_said_to_cost_passes(tmp_path: Path) -> None:
    box = make_sandbox(tmp_path / "project", DECLARATION)
    make_base(box.root / "base")
    make_adapter(box.root / "adapter")
    (box.root / "pyproject.toml").unlink()
    ran = box.doit("-r", "executed-only")
    assert ran.code == 0
    assert "each target is a pass of its own" in ran.err


# -- names and folders ---------------------------------------------------------------------------------------


def test_a_target_needs_no_prefix(box: Sandbox) -> None:
    assert "-- model:m_4bit" in box.doit("m_4bit").out
    assert "-- model:m_5bit" in box.doit("m").out
    assert "model:m_4bit" in box.doit("list", "m_4bit").out
    assert "model:m_4bit" in box.doit("info", "m_4bit").out
    named = box.doit("build")
    assert named.code == 3
    assert "`builder build` is a command of builder, not of doit" in named.err


def test_commands_work_below_the_project(box: Sandbox) -> None:
    below = Sandbox(box.root / "notes" / "deep")
    below.root.mkdir(parents=True)
    assert below.builder("status").out.splitlines()[1:] == box.builder("status").out.splitlines()[1:]
    assert below.builder("path", "m_4bit").out == "../../store/models/m_4bit\n"
    assert box.doit("clean:4bit").code == 0
    assert "../../store/models/m_4bit\n" in below.builder("build", "m_4bit").out
    assert below.builder("report", "-o", "page").code == 0
    assert (below.root / "page" / "index.html").is_file()
    box.toml.write_text("nonsense")
    assert "../../artifacts.toml:1" in below.builder("status").err
    assert below.builder("init").code == 0  # a project of its own
    outside = Sandbox(box.root.parent)
    assert "`builder init` makes one" in outside.builder("status").err


def test_paths_are_relative_to_the_person(box: Sandbox) -> None:
    outside = Sandbox(box.root.parent)
    assert outside.builder("-d", "project", "path", "m_4bit").out == "project/store/models/m_4bit\n"
    assert box.doit("clean:4bit").code == 0
    ran = outside.doit("-f", "project/dodo.py", "model:m_4bit")
    assert "project/store/models/m_4bit\n" in ran.out, ran.text


# -- no traceback --------------------------------------------------------------------------------------------


def test_a_wrong_task_of_info_is_one_line(box: Sandbox) -> None:
    ran = box.doit("info", "m_4bt")
    assert (ran.code, ran.out) == (3, "")
    assert 'there is no task or target "m_4bt"; did you mean "m_4bit"? [UnknownTask]' in ran.err


@pytest.mark.parametrize("command", ["list", "help", "info model:m_4bit", "status", "why"])
def test_a_closed_pipe_is_not_an_error(box: Sandbox, command: str) -> None:
    ran = box.run("bash", "-c", f"{sys.executable} -m doit {command} | head -1")
    assert ran.err == ""


READ_ONLY = (
    "eval:m_4bit",
    "clean:4bit",
    "-a",
    "lock",
    "add-variant m 6bit",
    "init --schema",
    "threshold:m",
    "eval --again m_4bit",
)


def test_a_read_only_folder_is_one_line(box: Sandbox) -> None:
    root = box.root
    script = f"mount --bind {root} {root} && mount -o remount,ro,bind {root} && cd {root} || exit 99\n"
    for command in READ_ONLY:
        program = "doit" if command == "-a" else "builder.commands.main"
        script += f"echo '$ {command}' >&2; {sys.executable} -m {program} {command} >/dev/null\n"
    ran = box.run("unshare", "-m", "bash", "-c", script)
    if ran.code == 99 or "Operation not permitted" in ran.err:
        pytest.skip("no mounts here")
    assert "Traceback" not in ran.err
    said = ran.err.split("$ ")[1:]
    assert len(said) == len(READ_ONLY)
    known = ("eval:m_4bit", "threshold:m")  # the answer is known, so nothing has to be written
    for one in said:
        if not one.startswith(known):
            assert "Read-only file system" in one, one


@pytest.mark.parametrize("delay", [0.05, 0.1, 0.15, 0.2, 0.3])
def test_an_early_interrupt_is_one_line(box: Sandbox, delay: float) -> None:
    """As early as our own code runs; what Python itself says before is Python's."""
    process = subprocess.Popen(
        [sys.executable, "-m", "builder.commands.main", "status"],
        cwd=box.root,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    time.sleep(delay)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE)
    assert "Traceback" not in err or "builder" not in err, err


def test_an_interrupt_while_modules_load_is_one_line(box: Sandbox) -> None:
    slow = "import builder.tasks, time\nopen('loading', 'w')\ntime.sleep(3600)\n"
    (box.root / "dodo.py").write_text(slow)
    (box.root / "pyproject.toml").unlink()
    process = subprocess.Popen(
        [sys.executable, "-m", "doit", "list"],
        cwd=box.root,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not (box.root / "loading").exists():
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE)
    assert err == "\nInterrupted. Nothing was changed.\n"


# -- one document --------------------------------------------------------------------------------------------


def test_a_run_as_json(box: Sandbox) -> None:
    ran = box.builder("eval", "m_4bit", "--json")
    said = document(ran)
    assert said["schema"] == "modelkiln/run/1"
    (evaluation,) = said["evaluations"]
    assert (evaluation["target"], evaluation["verdict"], evaluation["misses"]) == ("m_4bit", "passes", [])
    kl = next(record for record in evaluation["figures"] if record["figure"] == "kl")
    assert (kl["suite"], kl["required"], kl["holds"]) == ("fidelity", "<= 100", True)
    assert said["targets"][0]["state"] == "built"
    (threshold,) = document(box.builder("threshold:m", "--json"))["thresholds"]
    assert (threshold["model"], threshold["found"]) == ("m", "m_4bit")
    assert {each["verdict"] for each in threshold["targets"]} <= {"passes", "not measured"}
    assert document(box.builder("release:production", "--json"))["production"] == "m_4bit"
    box.edit('"<= 100"', '"<= -1"')
    failed = box.doit("run", "--json", "eval:m_4bit")
    assert failed.code == 1
    assert document(failed)["failed"][0]["error"] == "RequirementMissed"
    assert document(failed)["evaluations"][0]["verdict"] == "misses"
    assert document(box.doit("run", "--json", "-n", "2", "eval:m_4bit"))["evaluations"]


def test_lists_and_locks_as_json(box: Sandbox) -> None:
    tasks = {task["name"]: task for task in document(box.doit("list", "--json"))["tasks"]}
    assert tasks["model:m_4bit"] == {
        "name": "model:m_4bit",
        "doc": "tiny + tuned, 4-bit, group size 64",
        "group": False,
        "default": True,
    }
    assert not tasks["model:m_f16"]["default"]
    assert document(box.builder("lock", "--json"))["written"]
    assert document(box.builder("lock", "--check", "--json"))["same"]
    box.edit("bits = 4", "bits = 6")
    changed = box.builder("lock", "--check", "--json")
    assert changed.code == 1
    assert "target.m_4bit" in {one["what"] for one in document(changed)["differences"]}
    assert document(box.doit("report", "--json"))["models"]


# -- a plan before the first run -----------------------------------------------------------------------------


@pytest.fixture
def new(tmp_path: Path) -> Iterator[Sandbox]:
    box = make_sandbox(tmp_path / "project", DECLARATION)
    make_base(box.root / "base")
    make_adapter(box.root / "adapter")
    yield box


def test_a_plan_before_the_first_run(new: Sandbox) -> None:
    """Its numbers are those of the plan after the base was read, and nothing was read for them."""
    before = new.doit("plan")
    assert before.code == 1
    assert "The numbers of m are estimates from the headers of the files." in before.out
    assert before.out.count("base:tiny has not been") == 1
    guessed = document(new.doit("plan", "--json"))
    assert not (new.root / "store" / "blobs").exists()
    assert new.doit("base:tiny", "adapter:tuned").code == 0
    exact = document(new.doit("plan", "--json"))
    (one,), (other,) = guessed["passes"], exact["passes"]
    assert (one["estimated"], other["estimated"]) == (True, False)
    same = ("model", "targets", "make", "reuse", "read", "write")
    assert [one[name] for name in same] == [other[name] for name in same]
    assert other["memory"] <= one["memory"] < 1.01 * other["memory"]  # the first pass hashes what it reads
    assert guessed["prepare"]
    assert not exact["prepare"]


def test_a_remark_is_made_once(new: Sandbox) -> None:
    for bits in (4, 5):
        new.edit(
            f"bits = {bits}\ngroup_size = 64",
            f'bits = {bits}\ngroup_size = 64\noverrides = {{ "nothing.at.all" = false }}',
        )
    assert new.doit("base:tiny", "adapter:tuned").code == 0
    said = [line for line in new.doit("plan").out.splitlines() if "matches nothing" in line]
    assert said == ['m_4bit, m_5bit: override "nothing.at.all" matches nothing']
    assert len(document(new.doit("plan", "--json"))["remarks"]) == 2
