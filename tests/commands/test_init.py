"""`builder init`: what it proposes, what it writes, and what it says where something is already."""

from __future__ import annotations

import json
import os
import sys
import tomllib
from pathlib import Path

import pytest

from builder.commands.init import init
from builder.errors import SpecError
from builder.scaffold.nearby import look, plain_name
from builder.scaffold.propose import propose
from builder.spec.parse import parse_spec
from builder.spec.schema import schema_text
from tests.conftest import ROOT, Ran, Sandbox
from tests.tiny import make_adapter, make_base

NO_CACHE = {"HF_HUB_CACHE": "/nowhere"}


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
    assert len(parse_spec(tmp_path / "artifacts.toml", text.encode()).targets) == 12


def hub(root: Path, repo: str, config: str = "{}") -> Path:
    """A model in a cache of downloads."""
    snapshot = root / "hub" / f"models--{repo.replace('/', '--')}" / "snapshots" / "abc123"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text(config)
    (snapshot / "model-00001-of-00001.safetensors").touch()
    return root / "hub"


def adapter(folder: Path, base: str) -> None:
    folder.mkdir(parents=True)
    (folder / "adapters.safetensors").touch()
    (folder / "adapter_config.json").write_text(json.dumps({"model": base}))


def model(folder: Path, config: str = "{}") -> None:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(config)
    (folder / "model.safetensors").touch()


def proposed(root: Path, cache: Path | None = None) -> str:
    """What init would write, checked."""
    text = propose(look(root, cache or root / "no-cache"), "x")
    parse_spec(root / "artifacts.toml", text.encode())
    return text


def test_a_model_of_the_hub_cache_is_declared_when_an_adapter_names_it(tmp_path: Path) -> None:
    here = tmp_path / "here"
    cache = hub(tmp_path, "org/Tiny")
    hub(tmp_path, "other/Tiny")
    adapter(here / "tuned", "org/Tiny")
    text = proposed(here, cache)
    assert tomllib.loads(text)["base"] == {"tiny": {"hf": "org/Tiny", "revision": "abc123"}}
    assert '# [base.tiny-2]\n# hf = "other/Tiny"\n# revision = "abc123"\n' in text


def test_what_only_lies_in_the_hub_cache_is_a_comment(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    text = proposed(tmp_path / "here", hub(tmp_path, "org/Tiny"))
    data = tomllib.loads(text)
    assert data["base"] == {"base": {"path": "models/base"}}
    assert data["model"] == {"base": {"base": "base", "variants": ["4bit", "5bit", "6bit", "8bit"]}}
    assert '# [base.tiny]\n# hf = "org/Tiny"\n' in text


@pytest.mark.parametrize(
    "settings",
    [
        {"quantization": {"bits": 4}},
        {"quantization_config": {"quant_method": "awq"}},
        {"quantization_config": {"quant_method": "mxfp4"}},
    ],
)
def test_a_quantized_base_is_dequantized(tmp_path: Path, settings: dict[str, object]) -> None:
    """QLoRA: the adapter was trained on a quantized base that mlx-lm can read."""
    config = json.dumps(settings)
    model(tmp_path / "here" / "base-4bit", config)
    adapter(tmp_path / "here" / "one", "base-4bit")
    adapter(tmp_path / "here" / "two", "org/Tiny-4bit")
    text = proposed(tmp_path / "here", hub(tmp_path, "org/Tiny-4bit", config))
    assert {name: base.get("dequantize") for name, base in tomllib.loads(text)["base"].items()} == {
        "base-4bit": True,
        "tiny-4bit": True,
    }
    assert text.count("rounded away") == 2


BNB = json.dumps({"quantization_config": {"load_in_4bit": True}})
NAME = "unsloth/Tiny-1B-unsloth-bnb-4bit"


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("original", ["unsloth/Tiny-1B", "org/tiny-1b"])
def test_the_original_in_the_cache_is_proposed_for_a_base_that_mlx_lm_cannot_read(
    tmp_path: Path, original: str, there: bool
) -> None:
    adapter(tmp_path / "here" / "tuned", NAME)
    if there:
        hub(tmp_path, NAME, BNB)
    text = proposed(tmp_path / "here", hub(tmp_path, original))
    data = tomllib.loads(text)
    assert [*data["base"].values()] == [{"hf": original, "revision": "abc123"}]
    assert "dequantize" not in text.split("# also in Hugging Face")[0]


def test_the_original_in_the_folder_is_proposed(tmp_path: Path) -> None:
    model(tmp_path / "Tiny-1B")
    model(tmp_path / "Tiny-1B-bnb-4bit", BNB)
    adapter(tmp_path / "tuned", "unsloth/Tiny-1B-bnb-4bit")
    data = tomllib.loads(proposed(tmp_path))
    assert [*data["base"].values()] == [{"path": "Tiny-1B"}]


def test_an_original_that_is_not_here_is_named(tmp_path: Path) -> None:
    adapter(tmp_path / "tuned", NAME)
    text = proposed(tmp_path, hub(tmp_path, NAME, BNB))
    assert [*tomllib.loads(text)["base"].values()] == [{"hf": "unsloth/Tiny-1B", "revision": "main"}]
    assert "the original of Tiny-1B-unsloth-bnb-4bit, which mlx-lm cannot read" in text


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ({"quant_method": "bitsandbytes"}, "bitsandbytes"),
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        ({"quant_method": "fp8"}, "fp8"),
        ({"quant_method": "compressed-tensors", "format": "float-quantized"}, "compressed-tensors"),
    ],
)
def test_a_base_that_mlx_lm_cannot_read_is_marked(
    tmp_path: Path, method: dict[str, object], said: str
) -> None:
    model(tmp_path / "mine", json.dumps({"quantization_config": method}))
    adapter(tmp_path / "tuned", "mine")
    text = proposed(tmp_path)
    assert tomllib.loads(text)["base"] == {"mine": {"path": "mine"}}
    assert f"# EDIT: quantized with {said}, which mlx-lm cannot read. Name the original" in text


def test_the_revision_of_main_is_proposed(tmp_path: Path) -> None:
    adapter(tmp_path / "here" / "tuned", "org/Tiny")
    cache = hub(tmp_path, "org/Tiny")
    repository = cache / "models--org--Tiny"
    (repository / "snapshots" / "abc123").rename(repository / "snapshots" / "fff")
    hub(tmp_path, "org/Tiny")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("fff")
    data = tomllib.loads(proposed(tmp_path / "here", cache))
    assert [*data["base"].values()] == [{"hf": "org/Tiny", "revision": "fff"}]


@pytest.mark.parametrize(
    ("repo", "quantized"), [("org/Tiny-4bit", True), ("org/Tiny-MXFP4", True), ("org/Tiny-1B", False)]
)
def test_a_base_that_is_not_here_is_known_by_its_name(tmp_path: Path, repo: str, quantized: bool) -> None:
    adapter(tmp_path / "tuned", repo)
    (base,) = tomllib.loads(proposed(tmp_path))["base"].values()
    assert base == {"hf": repo, "revision": "main", **({"dequantize": True} if quantized else {})}


def test_every_name_is_its_own(tmp_path: Path) -> None:
    """A local model called as one elsewhere would be, and folders called as a number would make others."""
    model(tmp_path / "Tiny-1B")
    adapter(tmp_path / "a" / "x", "org/Tiny-1B-Instruct")
    adapter(tmp_path / "b" / "x", "Tiny-1B")
    adapter(tmp_path / "c" / "x-2", "org2/Tiny-1B-it")
    data = tomllib.loads(proposed(tmp_path))
    assert [*data["base"]] == ["tiny-1b", "tiny-1b-2", "tiny-1b-3"]
    assert {a["path"]: a["base"] for a in data["adapter"].values()} == {
        "a/x": "tiny-1b-2",
        "b/x": "tiny-1b",
        "c/x-2": "tiny-1b-3",
    }
    assert len(data["model"]) == 3


def test_a_base_outside_the_folder_is_found_where_its_adapter_says(tmp_path: Path) -> None:
    model(tmp_path / "elsewhere")
    adapter(tmp_path / "here" / "tuned", "../elsewhere")
    text = proposed(tmp_path / "here")
    assert tomllib.loads(text)["base"] == {"elsewhere": {"path": "../elsewhere"}}
    assert "EDIT" not in text


def test_what_toml_cannot_say_is_passed_over(tmp_path: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("file names are Unicode there")
    model(Path(os.fsdecode(bytes(tmp_path) + b"/bad\xff")))
    adapter(tmp_path / 'quote"d\x7f', "org/\ud800")
    data = tomllib.loads(proposed(tmp_path))
    assert [*data["base"]] == ["base"]
    assert data["adapter"]["quote-d"]["path"] == 'quote"d\x7f'


def test_a_refused_proposal_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builder.scaffold.propose.propose", lambda found, schema: "[base.x]\n[base.x]\n")
    with pytest.raises(SpecError):
        init(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_init_of_an_empty_folder_is_a_valid_declaration(tmp_path: Path) -> None:
    box = Sandbox(tmp_path)
    ran = box.builder("init", env=NO_CACHE)
    assert ran.code == 0, ran.text
    assert "EDIT" in box.toml.read_text()
    assert (tmp_path / "dodo.py").read_text().count("\n") == 2
    assert box.doit("list").code == 0
    assert box.doit("status").code == 1  # the command is registered by doit.cfg
    assert "models/base does not exist" in box.doit("why").out


@pytest.mark.parametrize(("text", "name"), [("Qwen2.5-7B-Instruct", "qwen2-5-7b"), ("___", "base")])
def test_names_are_legal(text: str, name: str) -> None:
    assert plain_name(text) == name


def test_the_schema_lies_beside_the_declaration(tmp_path: Path) -> None:
    box = Sandbox(tmp_path)
    assert box.builder("init", env=NO_CACHE).code == 0
    first = box.toml.read_text().splitlines()[0]
    schema = tmp_path / first.removeprefix("#:schema ")
    assert schema.read_text() == schema_text()
    schema.write_text("{}")
    text = box.toml.read_text()
    assert box.builder("init", "--schema").code == 0
    assert (schema.read_text(), box.toml.read_text()) == (schema_text(), text)


@pytest.mark.parametrize("file", ["artifacts.toml", "example/study/artifacts.toml"])
def test_our_own_declarations_name_the_schema(file: str) -> None:
    first = (ROOT / file).read_text().splitlines()[0]
    schema = (ROOT / file).parent / first.removeprefix("#:schema ")
    assert schema.resolve() == ROOT / "docs" / "artifacts.schema.json"


# -- where there is something already ----------------------------------------------------------------------


def lines_to_add(ran: Ran) -> str:
    """The indented lines of what init prints."""
    return "".join(f"{line[4:]}\n" for line in ran.out.splitlines() if line.startswith("    "))


OWN_DODO = "def task_mine():\n    return {'actions': ['echo mine ran']}\n"


@pytest.mark.parametrize("config", ["", "DOIT_CONFIG = {'default_tasks': ['mine']}\n"])
def test_init_says_what_an_own_dodo_needs(tmp_path: Path, config: str) -> None:
    box = Sandbox(tmp_path)
    dodo = tmp_path / "dodo.py"
    dodo.write_text(config + OWN_DODO)
    ran = box.builder("init", env=NO_CACHE)
    assert ran.code == 0
    assert dodo.read_text() == config + OWN_DODO
    assert "model:base_4bit" in box.builder("list").out  # without it
    dodo.write_text(dodo.read_text() + lines_to_add(ran))
    for program in (box.doit, box.builder):
        listed = program("list").out
        assert "model:base_4bit" in listed
        assert "mine" in listed
    if config:
        assert "mine ran" in box.doit().out
    (tmp_path / "artifacts.toml").unlink()
    assert "dodo.py is yours" not in box.builder("init", env=NO_CACHE).out


def test_builder_builds_beside_an_own_dodo(tmp_path: Path) -> None:
    box = Sandbox(tmp_path)
    make_base(tmp_path / "tiny")
    (tmp_path / "dodo.py").write_text("raise SystemExit('this is not run')\n")
    assert box.builder("init", env=NO_CACHE).code == 0
    ran = box.builder("build", "tiny_4bit")
    assert ran.code == 0, ran.text
    assert (box.view("tiny_4bit") / "config.json").exists()
    own = 'def task_mine():\n    return {"actions": ["true"]}\n'  # keeps .doit.db as doit does by itself
    (tmp_path / "dodo.py").write_text(own)
    for ran in (box.doit("mine"), box.builder("build"), box.doit("list"), box.doit("mine")):
        assert ran.code == 0, ran.text


def test_init_says_what_an_own_doit_cfg_needs(tmp_path: Path) -> None:
    box = Sandbox(tmp_path)
    cfg = tmp_path / "doit.cfg"
    cfg.write_text("[GLOBAL]\nverbosity = 1\n")
    ran = box.builder("init", env=NO_CACHE)
    assert cfg.read_text() == "[GLOBAL]\nverbosity = 1\n"
    assert "doit.cfg is yours and stays as it is" in ran.out
    cfg.write_text(cfg.read_text() + lines_to_add(ran))
    assert box.doit("status").code == 1
    assert "model:base_4bit" in box.doit("list").out
    (tmp_path / "artifacts.toml").unlink()
    assert "is yours" not in box.builder("init", env=NO_CACHE).out


def test_init_takes_no_name_from_others(tmp_path: Path) -> None:
    box = Sandbox(tmp_path)
    text = "[tool.doit.plugins.command]\nrun = 'builder.commands.run:Run'\nstatus = 'my:Status'\n"
    (tmp_path / "pyproject.toml").write_text(text)
    ran = box.builder("init", env=NO_CACHE)
    assert (tmp_path / "pyproject.toml").read_text() == text
    assert "add to it (instead of what it says of status)" in ran.out
    assert not (tmp_path / "doit.cfg").exists()
    added = lines_to_add(ran)
    assert "run =" not in added
    (tmp_path / "pyproject.toml").write_text(added)
    assert box.doit("status").code == 1
    assert "model:base_4bit" in box.doit("list").out


def test_init_adds_commands_beside_those_of_pyproject(tmp_path: Path) -> None:
    """doit reads doit.cfg and pyproject.toml."""
    box = Sandbox(tmp_path)
    (tmp_path / "pyproject.toml").write_text("[tool.doit.plugins.command]\nmine = 'doit.cmd_list:List'\n")
    assert "is yours" not in box.builder("init", env=NO_CACHE).out
    assert box.doit("status").code == 1
    assert "model:base_4bit" in box.doit("mine").out


def test_init_keeps_caches_out_of_git(tmp_path: Path) -> None:
    box = Sandbox(tmp_path)
    box.run("git", "init", "-q")
    assert ".gitignore: .modelkiln.db*" in box.builder("init", env=NO_CACHE).out
    box.doit("base:base")
    assert (tmp_path / "store").is_dir()
    assert (tmp_path / ".modelkiln.db").exists()
    kept = {".artifacts.schema.json", ".gitignore", "artifacts.toml", "dodo.py", "doit.cfg"}
    untracked = box.run("git", "status", "--short").out
    assert {line[3:] for line in untracked.splitlines()} - {"__pycache__/"} == kept
    (tmp_path / "artifacts.toml").unlink()
    assert "gitignore" not in box.builder("init", env=NO_CACHE).out
    (tmp_path / "artifacts.toml").unlink()
    (tmp_path / ".gitignore").write_text("mine\n")
    assert (
        ".gitignore is yours and stays as it is. Add .modelkiln.db*" in box.builder("init", env=NO_CACHE).out
    )
    assert (tmp_path / ".gitignore").read_text() == "mine\n"


def test_a_first_session_without_configuration(tmp_path: Path) -> None:
    """init, build, status: with `builder` alone, no dodo.py, no pyproject.toml."""
    box = Sandbox(tmp_path)
    make_base(tmp_path / "models" / "tiny")
    make_adapter(tmp_path / "adapters" / "tuned")
    file = tmp_path / "adapters" / "tuned" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "model": "models/tiny"}))
    assert box.builder("init", env=NO_CACHE).code == 0
    (tmp_path / "dodo.py").unlink()
    (tmp_path / "doit.cfg").unlink()
    ran = box.builder("build", "tuned_5bit", "--progress", "json")
    assert ran.code == 0, ran.text
    events = [json.loads(line) for line in ran.err.splitlines() if line.startswith("{")]
    assert [e["event"] for e in events if e["event"].startswith("Pass")] == ["PassStarted", "PassDone"]
    assert sum(e["made"] for e in events if e["event"] == "BlockDone") == 6
    assert events[-1]["event"] == "TargetDone"
    assert events[-1]["target"] == "tuned_5bit"
    assert box.builder("status", "tuned_5bit").code == 0
    assert box.builder("add-variant", "tuned", "3bit").code == 0
    quiet = box.builder("build", "tuned_3bit", "-q")
    assert (quiet.code, quiet.text) == (0, "")
    assert (box.view("tuned_3bit") / "config.json").exists()
