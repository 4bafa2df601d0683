"""`builder`: the console script, init, add-variant, completion, the Python API."""

from __future__ import annotations

import json
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

from builder.commands.complete import candidates
from builder.commands.completion import SCRIPTS
from builder.edit import add_variant, guess_settings
from builder.nearby import look, plain_name, propose
from builder.parse import parse_spec
from tests.conftest import ROOT, Ran, Sandbox
from tests.test_evaluate_run import SUITES
from tests.test_release import RELEASE
from tests.tiny import DECLARATION, make_adapter, make_base

Make = Callable[..., Sandbox]


def builder(box: Sandbox, *args: str) -> Ran:
    return box.run(sys.executable, "-m", "builder.commands.main", *args)


# -- init --------------------------------------------------------------------------------------------------


def lay_out(root: Path) -> None:
    """Files as they lie in a project, without weights in them."""
    for name in ("models/Tiny-1B-Instruct/config.json", "models/Tiny-1B-Instruct/model.safetensors"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    for name, config in (
        ("one", {"model": "models/Tiny-1B-Instruct"}),
        ("two", {"base_model_name_or_path": "org/Other-7B"}),
        ("three", {}),
    ):
        folder = root / "adapters" / name
        folder.mkdir(parents=True)
        (folder / "adapters.safetensors").touch()
        (folder / "adapter_config.json").write_text(json.dumps(config))
    (root / "node_modules" / "x").mkdir(parents=True)
    (root / "node_modules" / "x" / "y.gguf").touch()
    (root / "local.gguf").touch()


def test_init_proposes_what_lies_nearby(tmp_path: Path) -> None:
    lay_out(tmp_path)
    text = propose(look(tmp_path, tmp_path / "no-cache"), "./schema.json")
    assert text.startswith("#:schema ./schema.json\n")
    data = tomllib.loads(text)
    assert data["base"] == {
        "local": {"gguf": "local.gguf"},
        "tiny-1b": {"path": "models/Tiny-1B-Instruct"},
        "other-7b": {"hf": "org/Other-7B", "revision": "main"},
    }
    assert {name: table["base"] for name, table in data["adapter"].items()} == {
        "one": "tiny-1b",
        "two": "other-7b",
        "three": "local",
    }
    assert text.count("EDIT") == 1  # the adapter that does not say its base
    (tmp_path / "artifacts.toml").write_text(text)
    assert len(parse_spec(tmp_path / "artifacts.toml").targets) == 12


def test_init_finds_the_hub_cache(tmp_path: Path) -> None:
    snapshot = tmp_path / "hub" / "models--org--Tiny" / "snapshots" / "abc123"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").touch()
    (snapshot / "model-00001-of-00001.safetensors").touch()
    (tmp_path / "here").mkdir()
    data = tomllib.loads(propose(look(tmp_path / "here", tmp_path / "hub"), "x"))
    assert data["base"] == {"tiny": {"hf": "org/Tiny", "revision": "abc123"}}
    assert data["model"]["tiny"]["base"] == "tiny"


def test_init_of_an_empty_folder_is_a_valid_declaration(tmp_path: Path) -> None:
    box = Sandbox(tmp_path)
    ran = box.run(sys.executable, "-m", "builder.commands.main", "init", env={"HF_HUB_CACHE": "/nowhere"})
    assert ran.code == 0, ran.text
    assert "EDIT" in box.toml.read_text()
    assert (tmp_path / "dodo.py").read_text().count("\n") == 2
    assert box.doit("list").code == 0
    assert box.doit("status").code == 1  # the command is registered by doit.cfg
    assert "models/base does not exist" in box.doit("why").out


@pytest.mark.parametrize(("text", "name"), [("Qwen2.5-7B-Instruct", "qwen2-5-7b"), ("___", "base")])
def test_names_are_legal(text: str, name: str) -> None:
    assert plain_name(text) == name


def test_a_first_session_without_configuration(tmp_path: Path) -> None:
    """init, build, status: with `builder` alone, no dodo.py, no pyproject.toml."""
    box = Sandbox(tmp_path)
    make_base(tmp_path / "models" / "tiny")
    make_adapter(tmp_path / "adapters" / "tuned")
    file = tmp_path / "adapters" / "tuned" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "model": "models/tiny"}))
    assert (
        box.run(sys.executable, "-m", "builder.commands.main", "init", env={"HF_HOME": "/nowhere"}).code == 0
    )
    (tmp_path / "dodo.py").unlink()
    (tmp_path / "doit.cfg").unlink()
    ran = builder(box, "build", "tuned_5bit", "--progress", "json")
    assert ran.code == 0, ran.text
    events = [json.loads(line) for line in ran.err.splitlines() if line.startswith("{")]
    assert [e["event"] for e in events if e["event"].startswith("Pass")] == ["PassStarted", "PassDone"]
    assert sum(e["made"] for e in events if e["event"] == "BlockDone") == 6
    assert events[-1]["event"] == "TargetDone"
    assert events[-1]["target"] == "tuned_5bit"
    assert builder(box, "status", "tuned_5bit").code == 0
    assert builder(box, "add-variant", "tuned", "3bit").code == 0
    quiet = builder(box, "build", "tuned_3bit", "-q")
    assert (quiet.code, quiet.text) == (0, "")
    assert (box.view("tuned_3bit") / "config.json").exists()


# -- add-variant -------------------------------------------------------------------------------------------


def added(tmp_path: Path, text: str, *args: str) -> str:
    (tmp_path / "artifacts.toml").write_text(text)
    spec = parse_spec(tmp_path / "artifacts.toml")
    changed = add_variant(text, spec, args[0], args[1], {})
    (tmp_path / "artifacts.toml").write_text(changed)
    parse_spec(tmp_path / "artifacts.toml")
    return changed


def test_add_variant_keeps_comments_and_order(tmp_path: Path) -> None:
    text = (ROOT / "artifacts.toml").read_text()
    start = text.index("[base.")
    text = text[:start].replace("#:schema", "# schema") + text[start:]
    changed = added(tmp_path, text, "phase8", "3bit")
    for line in text.splitlines():
        if not line.startswith("variants"):
            assert line in changed.splitlines()
    assert "[variant.3bit]\nbits = 3\ngroup_size = 64\n\n" in changed
    assert changed.index("[variant.8bit]") < changed.index("[variant.3bit]") < changed.index("[model.phase8]")


def test_add_variant_to_declarations_of_any_form(tmp_path: Path) -> None:
    dotted = 'variant.a.bits = 4\nmodel.m = { base = "b", variants = ["a"] }\nbase.b.path = "p"\n'
    assert "[variant.6bit]" in added(tmp_path, dotted, "m", "6bit")
    many = DECLARATION.replace(
        'variants = ["f16", "4bit", "5bit"]', 'variants = [\n  "f16", # x\n  "4bit",\n]'
    )
    changed = added(tmp_path, many, "m", "6bit")
    assert "# x" in changed
    assert '"6bit"' in changed


def test_add_variant_reuses_a_declared_variant(tmp_path: Path) -> None:
    text = DECLARATION + '\n[model.n]\nbase = "tiny"\nvariants = ["f16"]\n'
    assert added(tmp_path, text, "n", "4bit") == text.replace('["f16"]', '["f16", "4bit"]')


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("6bit", {"bits": 6, "group_size": 64}),
        ("4bit-g32", {"bits": 4, "group_size": 32}),
        ("bf16", {"dtype": "bfloat16"}),
        ("mxfp4", {"mode": "mxfp4"}),
        ("mixed_4_6", {"recipe": "mixed_4_6"}),
    ],
)
def test_usual_names_say_their_settings(name: str, settings: dict[str, object]) -> None:
    assert guess_settings(name) == settings


def test_a_refused_variant_changes_nothing(sandbox: Make) -> None:
    box = sandbox(DECLARATION)
    ran = builder(box, "add-variant", "m", "7bit")
    assert ran.code == 3
    assert "7" in ran.err
    assert box.toml.read_text() == DECLARATION
    assert sorted(file.name for file in box.root.iterdir()) == ["artifacts.toml", "dodo.py", "pyproject.toml"]


# -- completion --------------------------------------------------------------------------------------------

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
        ("builder status --", ["--json"]),
        ("doit clean:f", ["clean:f16"]),
        ("doit sta", ["status"]),
        ("builder completion ", ["bash", "fish", "zsh"]),
        ("builder init ", []),
        ("builder report ", ["m"]),
    ],
)
def test_completion(line: str, found: list[str]) -> None:
    program, *words = line.split(" ")
    assert candidates(program, words, DECLARED) == found


def test_completion_knows_every_task(sandbox: Make) -> None:
    text = DECLARATION + SUITES + RELEASE
    box = sandbox(text)
    listed = {line.split()[0] for line in box.doit("list").out.splitlines()}
    offered = set(candidates("doit", ["info", ""], tomllib.loads(text)))
    assert {name for name in listed if ":" in name} == offered


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
    first, second, third = done.stdout.splitlines()
    assert first == "m_4bit"
    assert second == "m_5bit"
    assert "clean:f16" in third


def test_fish_completes(sandbox: Make) -> None:
    needs("fish")
    box = sandbox(DECLARATION)
    script = "source completion.fish; complete -C 'builder build m_'; echo; complete -C 'doit clean:f'"
    done = subprocess.run(
        ["fish", "--no-config", "-c", script],
        cwd=box.root,
        env=completing(box),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["m_4bit", "m_5bit", "m_f16", "clean:f16"]


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
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(terminal)


def shown(terminal: int, awaited: str, seconds: float = 30) -> str:
    """What a terminal shows, until it shows what is awaited or the seconds are over."""
    text, end = "", time.monotonic() + seconds
    while awaited not in text and select.select([terminal], [], [], max(0.0, end - time.monotonic()))[0]:
        text += os.read(terminal, 4096).decode(errors="replace")
    return text


# -- the rest ----------------------------------------------------------------------------------------------


def test_help_and_unknown_commands(sandbox: Make) -> None:
    box = sandbox(DECLARATION)
    assert "builder add-variant MODEL VARIANT" in builder(box).out
    wrong = builder(box, "staus")
    assert (wrong.code, wrong.err) == (3, 'ERROR: no command "staus"; did you mean "status"?\n')
    for command in ("build", "status", "why", "plan", "init", "add-variant", "completion"):
        assert "PURPOSE" in builder(box, "help", command).out


def test_the_python_api(sandbox: Make) -> None:
    box = sandbox(DECLARATION)
    code = (
        "import sys, builder; assert 'builder.project' not in sys.modules;"
        "from builder import Project; p = Project(); print([t.name for t in p.spec.targets]);"
        "print(p.status()[0].state)"
    )
    make_base(box.root / "base")
    make_adapter(box.root / "adapter")
    ran = box.run(sys.executable, "-c", code)
    assert ran.out == "['m_f16', 'm_4bit', 'm_5bit']\nunplanned\n", ran.text
