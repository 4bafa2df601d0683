"""`builder`: the console script, what it refuses, completion, the Python API."""

from __future__ import annotations

import importlib
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from builder import __version__
from builder.commands import COMMANDS, STANDALONE
from builder.commands.complete import OPTIONS, candidates
from builder.commands.completion import SCRIPTS
from tests.conftest import PATIENCE, Ran, Sandbox
from tests.evaluate.test_run import SUITES
from tests.release.test_production import RELEASE
from tests.tiny import DECLARATION, make_adapter, make_base

Make = Callable[..., Sandbox]


def builder(box: Sandbox, *args: str) -> Ran:
    return box.builder(*args)


# -- completion --------------------------------------------------------------------------------------------

LEARNED = """
[variant.learned]
method = "dwq"
bits = 4
from = "f16"
calibration = "text.jsonl"
"""
DECLARED = tomllib.loads(DECLARATION)


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("builder sta", ["status"]),
        ("builder build m_4", ["m_4bit"]),
        ("builder build model:m_4", ["model:m_4bit"]),
        ("builder why m_", ["m_4bit", "m_5bit", "m_f16"]),
        ("builder add-variant ", ["m"]),
        ("builder add-variant m ", ["4bit", "5bit", "f16"]),
        ("builder status --", ["--help", "--json"]),
        ("doit clean:f", ["clean:f16"]),
        ("doit sta", ["status"]),
        ("builder completion ", ["bash", "fish", "zsh"]),
        ("builder init ", []),
        ("builder report ", ["m"]),
        ("builder lock --", ["--check", "--help", "--json"]),
        ("builder init --", ["--help", "--schema", "--store"]),
        ("builder attest m_4bit --", ["--help", "--sha256"]),
        ("builder add-variant m 6bit --b", ["--bits"]),
        ("builder gc --d", ["--delete-everything-undeclared", "--dry-run"]),
        ("builder gc ", []),
        ("builder verify --r", ["--repair"]),
        ("builder verify m_4", ["m_4bit"]),
        ("builder build --lo", ["--locked"]),
        ("builder build --progress j", ["json"]),
        ("builder m_4", ["m_4bit"]),
        ("builder clean:f", ["clean:f16"]),
        ("doit --lo", ["--locked"]),
        ("doit model:m_4bit --pro", ["--process", "--progress"]),
        ("doit -q model:m_4", ["model:m_4bit"]),
        ("doit help sta", ["status"]),
    ],
)
def test_completion(line: str, found: list[str]) -> None:
    program, *words = line.split(" ")
    assert candidates(program, words, DECLARED) == found


def test_completion_knows_every_task(sandbox: Make) -> None:
    text = DECLARATION.replace('"f16", ', '"f16", "learned", ') + SUITES + RELEASE + LEARNED
    box = sandbox(text)
    listed = {line.split()[0] for line in box.doit("list").out.splitlines()}
    offered = set(candidates("doit", ["info", ""], tomllib.loads(text)))
    assert {name for name in listed if ":" in name} == offered


def test_completion_knows_every_option() -> None:
    """Of our commands, and of those of doit that take any; the common ones of doit's tasks are left out."""
    from doit.doit_cmd import DoitMain

    classes = {kind.get_name(): kind for kind in DoitMain.DOIT_CMDS if kind.get_name() in OPTIONS}
    for name, place in {**COMMANDS, **STANDALONE}.items():
        module, _, kind = place.partition(":")
        classes[name] = getattr(importlib.import_module(module), kind)
    taken = {name: {f"--{option['long']}" for option in kind.cmd_options} for name, kind in classes.items()}
    assert {name: set(options) for name, options in OPTIONS.items()} == taken


def test_completion_of_doit_in_other_projects(tmp_path: Path) -> None:
    box = Sandbox(tmp_path)
    (tmp_path / "dodo.py").write_text("def task_mine():\n    raise SystemExit\n\n\ndef other():\n    pass\n")

    def offered(*words: str) -> list[str]:
        return box.builder("_complete", *words).out.split()

    assert offered("doit", "mi") == ["mine"]
    assert "list" in offered("doit", "")
    assert "status" not in offered("doit", "")
    box.toml.write_text(DECLARATION)
    assert offered("doit", "m") == ["mine", "model:m", "model:m_4bit", "model:m_5bit", "model:m_f16"]
    assert "status" in offered("doit", "")
    below = Sandbox(tmp_path / "below")
    below.root.mkdir()
    assert below.builder("_complete", "builder", "build", "m_4").out == "m_4bit\n"
    assert below.builder("_complete", "doit", "model:").out == ""  # doit does not look upwards


def test_completion_loads_next_to_nothing(sandbox: Make) -> None:
    """bench/noop.py times it; what would make it slow is what it must not load."""
    box = sandbox(DECLARATION)
    code = (
        "import sys; from builder.commands.main import main\n"
        "sys.argv[1:] = ['_complete', 'builder', 'build', '']\n"
        "try: main()\nfinally: print(*sys.modules)"
    )
    *offered, loaded = box.run(sys.executable, "-c", code).out.splitlines()
    assert "m_4bit" in offered
    assert not {"doit", "mlx", "numpy", "rich", "blake3", "tomlkit", "sqlite3"} & set(loaded.split())


def completing(box: Sandbox) -> dict[str, str]:
    """The environment of a shell that finds `builder`, and a doit that is never run."""
    tools = box.root / "bin"
    tools.mkdir()
    (tools / "builder").write_text(f'#!/bin/sh\nexec {sys.executable} -m builder.commands.main "$@"\n')
    (tools / "doit").write_text("#!/bin/sh\nexit 1\n")
    for tool in tools.iterdir():
        tool.chmod(0o755)
    for shell, script in SCRIPTS.items():
        (box.root / f"completion.{shell}").write_text(script)
    return {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "HOME": str(box.root), "TERM": "dumb"}


def needs(shell: str) -> None:
    if not shutil.which(shell):
        pytest.skip(f"no {shell}")


def test_bash_completes(sandbox: Make) -> None:
    needs("bash")
    box = sandbox(DECLARATION)
    script = (
        "source completion.bash\n"
        'try() { COMP_LINE="$1"; COMP_POINT=${#1}; _builder_complete; echo "${COMPREPLY[*]}"; }\n'
        'try "builder build m_4"; try "doit model:m_5"; try "doit "\n'
    )
    done = subprocess.run(
        ["bash", "-c", script], cwd=box.root, env=completing(box), capture_output=True, text=True, check=True
    )
    assert "-o default" in SCRIPTS["bash"]  # files, in projects that are not ours
    first, second, third = done.stdout.splitlines()
    assert first == "m_4bit"
    assert second == "m_5bit"
    assert "clean:f16" in third


def test_fish_completes(sandbox: Make) -> None:
    needs("fish")
    box = sandbox(DECLARATION)
    script = (
        "source completion.fish; complete -C 'builder build m_'; echo; complete -C 'doit clean:f'\n"
        "mkdir other; cd other; touch notes; complete -C 'doit not'"
    )
    done = subprocess.run(
        ["fish", "--no-config", "-c", script],
        cwd=box.root,
        env=completing(box),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["m_4bit", "m_5bit", "m_f16", "clean:f16", "notes"]


def test_zsh_completes(sandbox: Make) -> None:
    """In a terminal of its own, for zsh completes nowhere else: the rest of the word is typed."""
    needs("zsh")
    box = sandbox(DECLARATION)
    environment = completing(box)
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(box.root)
        os.execvpe("zsh", ["zsh", "-f", "-i"], environment)
    try:
        os.write(terminal, b"autoload -U compinit; compinit -u -D; source completion.zsh; print REA''DY\n")
        assert "READY" in shown(terminal, "READY")
        os.write(terminal, b"builder build m_4\t")
        assert "m_4bit" in shown(terminal, "m_4bit")
        os.write(terminal, b"\x15doit clean:f\t")
        assert "clean:f16" in shown(terminal, "clean:f16")
        os.write(terminal, b"\x15mkdir other; cd other; touch notes-of-mine; print THE''RE\n")
        assert "THERE" in shown(terminal, "THERE")
        os.write(terminal, b"doit not\t")
        assert "notes-of-mine" in shown(terminal, "notes-of-mine")
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(terminal)


def shown(terminal: int, awaited: str) -> str:
    """What a terminal shows, until it shows what is awaited."""
    text, end = "", time.monotonic() + PATIENCE
    while awaited not in text and select.select([terminal], [], [], max(0.0, end - time.monotonic()))[0]:
        text += os.read(terminal, 4096).decode(errors="replace")
    return text


# -- the rest ----------------------------------------------------------------------------------------------


def test_help_and_unknown_commands(sandbox: Make) -> None:
    box = sandbox(DECLARATION)
    assert "builder add-variant MODEL VARIANT" in builder(box).out
    wrong = builder(box, "staus")
    assert (wrong.code, wrong.err) == (3, 'ERROR: there is no command "staus"; did you mean "status"?\n')
    assert builder(box, "m_4bt").err == 'ERROR: there is no command "m_4bt"; did you mean "m_4bit"?\n'
    for command in (*COMMANDS, *STANDALONE):
        if command in ("run", "help"):
            continue
        help_text = builder(box, "help", command).out
        assert help_text.startswith(f"builder {command}")
        assert len(help_text.splitlines()) <= 24, help_text  # one screen
        assert max(map(len, help_text.splitlines())) <= 80
        assert "config:" not in help_text
        assert builder(box, command, "--help").out == help_text
        assert builder(box, command, "-h").out == help_text
    assert " status [TARGET...]\n" in box.doit("status", "--json", "--help").out
    assert "--locked" in box.doit("-h").out
    assert "--db-file" not in box.doit("-h").out  # of doit, and nobody's business
    assert "`builder help build`" in box.doit("help", "build").out


def test_the_version(sandbox: Make) -> None:
    ran = builder(sandbox(DECLARATION), "--version")
    assert (ran.code, ran.out) == (0, f"modelkiln {__version__}\n")


def test_a_wrong_name_is_said_at_once(sandbox: Make) -> None:
    box = sandbox(DECLARATION)
    for ran in (builder(box, "build", "m_4bt"), box.doit("m_4bt")):
        assert (ran.code, ran.out) == (3, "")
        assert 'there is no task or target "m_4bt"; did you mean "m_4bit"?' in ran.err
    assert 'did you mean "model:m_4bit"?' in builder(box, "model:m_4bt").err
    assert 'did you mean "status"?' in box.doit("staus").err
    assert "--no-such" in box.doit("--no-such").err


@pytest.mark.parametrize(
    "words",
    [
        ("gc", "m_4bit"),
        ("lock", "foo"),
        ("init", "sub"),
        ("attest",),
        ("--json", "status"),
        ("-d", "none", "x"),
    ],
)
def test_what_would_be_ignored_is_refused(sandbox: Make, words: tuple[str, ...]) -> None:
    box = sandbox(DECLARATION)
    before = {path.name for path in box.root.iterdir()}
    ran = builder(box, *words)
    assert (ran.code, ran.out, ran.err.count("\n")) == (3, "", 1), ran.text
    assert ran.err.startswith("ERROR: ")
    assert "CmdOption" not in ran.err
    assert {path.name for path in box.root.iterdir()} - before <= {"store"}


def test_a_task_needs_no_command(sandbox: Make) -> None:
    box = sandbox(DECLARATION)
    for words in (("clean:f16",), ("clean:m_4bit", "-q"), ("build", "clean:f16")):
        ran = builder(box, *words)
        assert ran.code == 0, ran.text


def test_another_folder(sandbox: Make) -> None:
    box = sandbox(DECLARATION)
    (box.root / "elsewhere").mkdir()
    assert "model:m_4bit" in Sandbox(box.root / "elsewhere").builder("-d", "..", "list").out


def test_the_python_api(sandbox: Make) -> None:
    box = sandbox(DECLARATION)
    code = (
        "import sys, builder; assert 'builder.project.project' not in sys.modules;"
        "from builder import Project; p = Project(); print([t.name for t in p.spec.targets]);"
        "print(p.status()[0].state)"
    )
    make_base(box.root / "base")
    make_adapter(box.root / "adapter")
    ran = box.run(sys.executable, "-c", code)
    assert ran.out == "['m_f16', 'm_4bit', 'm_5bit']\nnot planned\n", ran.text
