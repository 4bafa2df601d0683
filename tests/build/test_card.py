"""The card in each view: true at the build, after a measurement, in a release; what it tells to run, runs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import takewhile
from pathlib import Path

import pytest

from builder.build.card import Score, render
from builder.evaluate.circumstances import Told
from builder.keys import Digest, Key
from builder.spec.types import Base, BaseSource, GgufSource, HfSource, PathSource
from builder.store.types import Blob, FileEntry, Manifest
from tests.conftest import Sandbox
from tests.evaluate.test_run import project
from tests.release.test_production import RELEASE


@pytest.fixture
def box(sandbox: Callable[[str], Sandbox]) -> Sandbox:
    made = project(sandbox)
    made.edit('suites = ["routing", "calls", "ppl", "fidelity", "said", "own"]', 'suites = ["routing"]')
    made.toml.write_text(made.toml.read_text() + RELEASE)
    return made


def card(box: Sandbox, name: str = "m_4bit") -> str:
    return (box.view(name) / "README.md").read_text()


def test_it_says_what_was_made_and_then_what_was_measured(box: Sandbox) -> None:
    assert box.doit("model:m_4bit").code == 0
    manifest = (box.view("m_4bit") / "artifact.toml").read_text()
    text = card(box)
    for name in ("key", "base_digest", "adapter_digest", "toolchain"):
        said = re.search(rf'^{name} = "(.*)"$', manifest, re.MULTILINE)
        assert said is not None
        assert said[1] in text, name
    assert "quantized to 4 bits" in text
    assert "Not measured." in text
    assert box.doit("eval:m_4bit").code == 0
    (found,) = box.root.glob("store/evals/*/*.json")
    figure = json.loads(found.read_text().split("\n")[0])["figures"]["accuracy"]
    row = re.search(r"\| routing.accuracy \| ([\d.]+) \| ([\d.]+) to ([\d.]+) \| 6 \|", card(box))
    assert row is not None
    assert re.search(r"^Measured 20\S+Z, on .+, with mlx .+, precision float32\.$", card(box), re.MULTILINE)
    expected = [figure[name] for name in ("value", "low", "high")]
    assert [float(value) for value in row.groups()] == pytest.approx(expected, abs=1e-3)


def test_it_is_no_reason_to_build_and_comes_back_with_its_scores(box: Sandbox) -> None:
    assert box.doit("eval:m_4bit").code == 0
    before = card(box)
    (box.view("m_4bit") / "README.md").write_text("edited\n")
    assert box.doit("model:m_4bit").out.endswith("-- model:m_4bit\n")
    subprocess.run(["rm", "-r", str(box.view("m_4bit"))], check=True)
    assert box.doit("model:m_4bit").code == 0
    assert card(box) == before


def test_a_release_has_it(box: Sandbox) -> None:
    assert box.doit("release:production").code == 0
    assert card(box, "production") == card(box)
    assert "routing.accuracy" in card(box, "production")


def test_what_it_tells_to_run_runs(box: Sandbox, tmp_path: Path) -> None:
    assert box.doit("model:m_4bit").code == 0
    python = re.search(r"```python\n(.*?)```", card(box), re.DOTALL)
    shell = re.search(r"^mlx_lm\.generate (.*)$", card(box), re.MULTILINE)
    assert python is not None
    assert shell is not None
    script = tmp_path / "load.py"
    script.write_text(python[1].replace("max_tokens=100", "max_tokens=2"))
    done = subprocess.run(
        [sys.executable, str(script)], cwd=box.view("m_4bit"), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    words = shell[1].replace("100", "2").replace('"', "").split()
    command = [sys.executable, "-m", "mlx_lm", "generate", *words]
    done = subprocess.run(command, cwd=box.view("m_4bit"), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# -- every branch, without a build ---------------------------------------------------------------------------

KEY, BASE, ADAPTER, TEXT = ("0" * 64, "b" * 64, "a" * 64, "c" * 64)
MANIFEST = Manifest(
    Key(KEY),
    "target",
    "m_4bit",
    "2025-01-01T00:00:00Z",
    (FileEntry("model.safetensors", Blob(Digest("f" * 64), 20_100_000_000)),),
    {"base": "toy", "base_digest": BASE},
)
HF = Base("toy", HfSource("org/Toy-1B", "0123abc"))


def rows(text: str, heading: str) -> list[list[str]]:
    """The cells of the table whose head is this line, without its rule."""
    lines = text[text.index(heading) :].splitlines()
    table = list(takewhile(lambda line: line.startswith("|"), lines))
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table[2:]]


def facts(manifest: Manifest) -> dict[str, str]:
    return dict(rows(render(manifest, HF, "m_4bit"), "|  |  |"))


@pytest.mark.parametrize(
    ("source", "said", "front"),
    [
        (HfSource("org/Toy-1B", "0123abc"), "org/Toy-1B, revision 0123abc", ["base_model: org/Toy-1B"]),
        (HfSource("org/Toy-1B", ""), "org/Toy-1B", ["base_model: org/Toy-1B"]),
        (GgufSource("pkg:toy.Q4_1.gguf", "pkg", Path("toy.Q4_1.gguf")), "toy.Q4_1.gguf", []),
        (GgufSource("/home/me/toy.gguf", None, Path("/home/me/toy.gguf")), "toy.gguf", []),
        (PathSource(Path("/home/me/models/toy-1b")), "toy-1b", []),
    ],
)
def test_where_the_base_comes_from(source: BaseSource, said: str, front: list[str]) -> None:
    """Without the folders of the machine that made it."""
    text = render(MANIFEST, Base("toy", source), "m_4bit")
    assert f"The base `toy` ({said}), in MLX format. Made by modelkiln." in text
    assert "/home/me" not in text
    assert text.startswith("\n".join(["---", "library_name: mlx", "tags:", "- mlx", *front, "---"]))
    assert "\n\n# m_4bit\n\n" in text


@pytest.mark.parametrize(
    ("inputs", "settings", "said"),
    [
        ({}, {}, "The base `toy` (org/Toy-1B, revision 0123abc), in MLX format."),
        ({}, {"bits": 4}, "(org/Toy-1B, revision 0123abc), quantized to 4 bits, in MLX format."),
        ({"adapter": "tuned"}, {}, "0123abc) with the adapter `tuned` fused into it, in MLX format."),
        (
            {"adapter": "tuned"},
            {"bits": 4},
            "0123abc) with the adapter `tuned` fused into it, quantized to 4 bits, in MLX format.",
        ),
    ],
)
def test_what_was_made(inputs: dict[str, str], settings: dict[str, int], said: str) -> None:
    text = render(replace(MANIFEST, inputs={**MANIFEST.inputs, **inputs}, settings=settings), HF, "m_4bit")
    assert said in text


def test_the_least_that_is_known() -> None:
    assert facts(MANIFEST) == {"size": "20.1 GB", "key": f"`{KEY}`", "base digest": f"`{BASE}`"}


def test_everything_that_is_known() -> None:
    manifest = replace(
        MANIFEST,
        inputs={
            **{"base": "toy", "base_digest": BASE, "adapter": "tuned", "adapter_digest": ADAPTER},
            "calibration_digest": TEXT,
        },
        settings={"variant": "4bit", "dtype": "as the base", "bits": 4, "group_size": 64},
        toolchain={"toolchain": "mlx 1", "machine": "Darwin arm64", "made": "2025-01-01T00:00:00Z"},
        measures={"bits_per_weight": 4.5, "survival_db": 12.25, "blocks": 3},
    )
    assert list(facts(manifest).items()) == [
        ("size", "20.1 GB"),
        ("bits per weight", "4.5"),
        ("variant", "4bit"),
        ("dtype", "as the base"),
        ("bits", "4"),
        ("group size", "64"),
        ("adapter against rounding error", "12.25 dB"),
        ("key", f"`{KEY}`"),
        ("base digest", f"`{BASE}`"),
        ("adapter digest", f"`{ADAPTER}`"),
        ("calibration digest", f"`{TEXT}`"),
        ("toolchain", "mlx 1"),
        ("machine", "Darwin arm64"),
        ("made", "2025-01-01T00:00:00Z"),
    ]


SCORES = (
    Score("routing.accuracy", "0.983", "0.941 to 0.995", "120"),
    Score("said.kl", "0.0123", "", "1917 tokens of 120 answers"),
)
HEAD = "| figure | value | 95 % interval | n |"


def test_scores() -> None:
    text = render(MANIFEST, HF, "m_4bit", SCORES)
    assert rows(text, HEAD) == [
        ["routing.accuracy", "0.983", "0.941 to 0.995", "120"],
        ["said.kl", "0.0123", "-", "1917 tokens of 120 answers"],
    ]
    assert "Measured" not in text
    assert "Not measured." not in text


def test_scores_with_their_circumstances() -> None:
    text = render(MANIFEST, HF, "m_4bit", SCORES, Told("2025-01-01T00:00:00Z", "Darwin arm64 gpu", "mlx 1"))
    assert "\n\nMeasured 2025-01-01T00:00:00Z, on Darwin arm64 gpu, with mlx 1.\n\n" in text


def test_without_scores_nothing_was_measured() -> None:
    assert "## Scores\n\nNot measured.\n\n" in render(MANIFEST, HF, "m_4bit", (), Told("now", "here", "this"))
    assert "Not measured." in render(MANIFEST, HF, "m_4bit")


def test_names_that_would_break_a_table_are_escaped() -> None:
    """A command names its figures as it likes; an override's pattern stands among the settings."""
    odd = Score("own.a|b\nc\rd", "1|2", "0 | 1", "3\r\n4")
    text = render(replace(MANIFEST, settings={"override a|b\n": "x|y"}), HF, "m_4bit", (odd, *SCORES))
    assert rows(text, HEAD)[0] == ["own.a\\|b c d", "1\\|2", "0 \\| 1", "3 4"]
    assert len(rows(text, HEAD)) == 3
    assert facts(replace(MANIFEST, settings={"override a|b\n": "x|y"}))["override a\\|b"] == "x\\|y"


def test_how_to_load_it_names_the_target() -> None:
    """By the name that it has now: its manifest may be of a build under another one."""
    text = render(replace(MANIFEST, name="old_4bit"), HF, "m_4bit")
    assert "cp -Rc . ~/.lmstudio/models/local/m_4bit`" in text
    assert "old_4bit" not in text
    assert text.endswith("\n")
    assert not text.endswith("\n\n")
