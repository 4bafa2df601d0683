"""status, why and plan through the real command line."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from builder.commands import COMMANDS
from tests.conftest import ROOT, Ran, Sandbox
from tests.tiny import BLOCKS, DECLARATION, make_adapter, make_base


def make_project(root: Path) -> Sandbox:
    root.mkdir()
    shutil.copy(ROOT / "dodo.py", root)
    plugins = "".join(f'{name} = "{place}"\n' for name, place in COMMANDS.items())
    (root / "pyproject.toml").write_text(f"[tool.doit.plugins.command]\n{plugins}")
    (root / "artifacts.toml").write_text(DECLARATION)
    make_base(root / "base")
    make_adapter(root / "adapter")
    return Sandbox(root)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Sandbox:
    box = make_project(tmp_path_factory.mktemp("query") / "project")
    assert box.doit().code == 0
    return box


@pytest.fixture
def done(built: Sandbox) -> Iterator[Sandbox]:
    """The built project; its declaration is put back afterwards."""
    yield built
    built.toml.write_text(DECLARATION)


def document(ran: Ran) -> dict[str, Any]:
    return dict(json.loads(ran.out))


def row(box: Sandbox, target: str) -> dict[str, Any]:
    rows = {row["target"]: row for row in document(box.doit("status", "--json"))["targets"]}
    return dict(rows[target])


def test_nothing_built_yet(tmp_path: Path) -> None:
    box = make_project(tmp_path / "new")
    status = box.doit("status")
    assert status.code == 1
    assert "new source" in status.out
    plan = box.doit("plan")
    assert plan.code == 1
    assert "base:tiny has not been" in plan.out
    assert box.doit("why", "m_4bit").code == 1


def test_status_of_a_built_project(done: Sandbox) -> None:
    ran = done.doit("status")
    assert ran.code == 0
    lines = ran.out.splitlines()
    headings = ["target", "state", "size", "bits/w", "blocks", "reused", "built", "survival", "why"]
    assert lines[0].split() == headings
    assert max(map(len, lines)) <= 80
    assert lines[1].startswith("m_f16   not kept")
    assert lines[1].endswith("on demand")
    made = row(done, "m_5bit")
    assert (made["state"], made["blocks"], made["reused"], made["due"]) == ("built", BLOCKS, 1, False)
    assert made["size"] > 100_000
    assert made["built"].endswith("Z")


def test_json_documents_name_their_schema(done: Sandbox) -> None:
    for command in ("status", "why", "plan"):
        assert document(done.doit(command, "--json"))["schema"] == f"modelkiln/{command}/1"


def test_plan_when_nothing_is_to_be_done(done: Sandbox) -> None:
    ran = done.doit("plan")
    assert (ran.code, ran.out) == (0, "Nothing to do: 2 targets built.\n")


def test_a_changed_setting(done: Sandbox) -> None:
    done.edit("bits = 4\ngroup_size = 64", "bits = 4\ngroup_size = 32")
    status = row(done, "m_4bit")
    assert (status["state"], status["why"], status["reused"]) == ("out of date", "group_size 64 -> 32", 1)
    why = done.doit("why", "m_4bit")
    assert why.code == 1
    assert why.out.splitlines() == [
        "m_4bit is out of date: group_size 64 -> 32.",
        "  group_size: 64 -> 32",
        f"  rebuilds 5 of 6 blocks ({why.out.split('(')[1].split(')')[0]}), reuses 1",
        "  model.embed_tokens, model.layers.0-3",
    ]
    plan = document(done.doit("plan", "--json"))
    (one,) = plan["passes"]
    assert (one["model"], one["targets"], one["make"], one["reuse"]) == ("m", ["m_4bit"], 5, 1)
    assert plan["built"] == ["m_5bit"]
    assert plan["space"]["after"] - plan["space"]["before"] == one["write"]
    assert one["seconds"] > 0  # from the pass that built this project


def test_why_says_from_which_digest_to_which(built: Sandbox, tmp_path: Path) -> None:
    box = Sandbox(tmp_path / "copy")
    shutil.copytree(built.root, box.root, symlinks=True)
    make_adapter(box.root / "adapter", seed=8)
    why = document(box.doit("why", "m_5bit", "--json"))["targets"][0]
    (change,) = why["changes"]
    assert change["what"] == "adapter"
    assert change["is_digest"]
    assert change["before"] != change["now"]
    assert why["blocks"] == ["model.layers.2", "model.layers.3"]
    template = box.root / "base" / "chat_template.jinja"
    template.write_text(template.read_text() + "\n")
    assert "chat_template.jinja changed" in box.doit("why", "m_5bit").out


def test_forecasts_are_what_happens(built: Sandbox, tmp_path: Path) -> None:
    box = Sandbox(tmp_path / "copy")
    shutil.copytree(built.root, box.root, symlinks=True)
    box.edit("bits = 5\ngroup_size = 64", "bits = 6\ngroup_size = 64")
    said = document(box.doit("plan", "--json"))
    assert box.doit().code == 0
    after = document(box.doit("plan", "--json"))
    written = after["space"]["before"] - said["space"]["before"]
    small = 60_000  # config.json and the index, which a plan does not count
    assert 0 <= written - said["passes"][0]["write"] < small
    assert row(box, "m_5bit")["reused"] == said["passes"][0]["reuse"]


def test_names_of_targets(done: Sandbox) -> None:
    assert "m_4bit" not in done.doit("status", "model:m_5bit").out
    assert "m_4bit" in done.doit("status", "m").out
    wrong = done.doit("why", "m_5bt")
    assert wrong.code == 3
    assert wrong.err.startswith('ERROR: there is no target "m_5bt"; did you mean "m_5bit"? [UnknownTarget]\n')


def test_options_may_stand_anywhere(done: Sandbox) -> None:
    assert document(done.doit("status", "m_5bit", "--json"))["targets"][0]["target"] == "m_5bit"
    assert done.doit("status", "--jsn").code == 3


def test_a_closed_pipe_is_no_error(done: Sandbox) -> None:
    ran = done.run("sh", "-c", f"{sys.executable} -m doit status --json | head -1")
    assert "Traceback" not in ran.err
    assert "Broken" not in ran.err


def test_one_unusable_source_leaves_the_others(done: Sandbox) -> None:
    done.toml.write_text(
        DECLARATION + '[base.gone]\npath = "nowhere"\n[model.n]\nbase = "gone"\nvariants = ["4bit"]\n'
    )
    status = done.doit("status")
    assert status.code == 1
    assert "source unusable" in status.out
    assert row(done, "m_5bit")["state"] == "built"
    assert done.doit("model:m_5bit").code == 0
    assert "nowhere does not exist" in done.doit("why", "n_4bit").out


def test_one_model_that_cannot_be_made_leaves_the_others(built: Sandbox, tmp_path: Path) -> None:
    box = Sandbox(tmp_path / "copy")
    shutil.copytree(built.root, box.root, symlinks=True)
    shutil.copytree(box.view("m_4bit"), box.root / "packed")
    box.toml.write_text(
        DECLARATION + '[base.packed]\npath = "packed"\n[model.bad]\nbase = "packed"\nvariants = ["4bit"]\n'
    )
    said = '[model.bad] variant "4bit" would keep the old bits: base "packed" is quantized already'
    failed = box.doit("model:bad_4bit")  # PlanError
    assert failed.code == 2
    assert said in failed.text
    assert "Traceback" not in failed.text
    status = box.doit("status")
    assert status.code == 1
    assert "cannot be made" in status.out
    bad = row(box, "bad_4bit")
    assert (bad["state"], bad["why"], bad["reason"]) == ("not planned", "cannot be made", said)
    assert row(box, "m_5bit")["state"] == "built"
    assert box.doit("plan", "m_4bit").code == 0
    plan = box.doit("plan")
    assert plan.code == 1
    assert f"bad_4bit cannot be built: {said}" in plan.out.splitlines()
    assert document(box.doit("plan", "--json"))["refused"] == [{"target": "bad_4bit", "reason": said}]
    assert box.doit("model:m_5bit").code == 0
    assert box.doit("gc", "--dry-run").code == 0


def test_before_and_after_a_build_the_size_is_the_same(tmp_path: Path) -> None:
    box = make_project(tmp_path / "new")
    assert box.doit("base:tiny", "adapter:tuned").code == 0
    before = row(box, "m_5bit")
    written = document(box.doit("plan", "m_5bit", "--json"))["passes"][0]["write"]
    assert box.doit("model:m_5bit").code == 0
    after = row(box, "m_5bit")
    copied = sum(
        (box.root / "base" / name).stat().st_size for name in ("tokenizer.json", "chat_template.jinja")
    )
    made_with_it = sum(
        (box.view("m_5bit") / name).stat().st_size for name in ("config.json", "model.safetensors.index.json")
    )
    assert after["size"] == before["size"] + made_with_it
    assert written + copied < before["size"]
    assert after["bits_per_weight"] == before["bits_per_weight"]


def test_queries_import_nothing_heavy(done: Sandbox) -> None:
    probe = (
        "import sys; from doit.doit_cmd import DoitMain; DoitMain().run(sys.argv[1:]);"
        "print([m for m in ('mlx', 'mlx_lm', 'transformers', 'numpy', 'rich') if m in sys.modules])"
    )
    for command in ("status", "why", "plan"):
        assert done.run(sys.executable, "-c", probe, command).out.endswith("[]\n")
