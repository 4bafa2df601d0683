"""The docs do what they say: the tutorial is run block by block, all other commands are accounted for."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from builder.commands import COMMANDS, STANDALONE
from builder.console.events import Event
from builder.console.states import State
from builder.evaluate.results import Verdict
from builder.store.care.findings import Kind
from builder.store.format import FORMER
from builder.store.layout import Store
from builder.store.views import NAME
from tests.conftest import ROOT, Ran, Sandbox

BIN = Path(sys.executable).parent
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/*.md"),
        ROOT / "bench/README.md",
        ROOT / "example/README.md",
    ]
)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def run(command: str, folder: Path) -> Ran:
    """In a shell, as a person would, with this environment's programs first."""
    env = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "NO_COLOR": "1", "COLUMNS": "120"}
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return Ran(done.returncode, done.stdout, "")


def shape(text: str) -> set[str]:
    """Lines without their digits, ages and spaces: what must be the same from run to run."""
    ages = re.sub(r"\b(just now|\d+ (min|h|d) ago)\b", "AGE", text)
    lines = (re.sub(r"[\d.+-]+", "0", line) for line in ages.splitlines())
    return {re.sub(r"\s+", " ", line).strip() for line in lines} - {""}


# -- the tutorial, block by block ---------------------------------------------------------------------------

TUTORIAL = "docs/start.md"
TYPED = re.compile(r"^```sh\n(#.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.MULTILINE | re.DOTALL)
MARK = "@@@"
# A reader needs longer than the two seconds for which the store does not trust a new file's times.
PAUSE = "sleep 3\n"


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds nothing but `modelkiln`, which stands for the clone after `uv sync`.

    The page takes two things from its clone: the example's files, and the environment. Both are links here.
    """
    home = tmp_path_factory.mktemp("tutorial")
    (home / "modelkiln").mkdir()
    (home / "modelkiln/example").symlink_to(ROOT / "example")
    (home / "modelkiln/.venv").symlink_to(sys.prefix)
    return home


@pytest.mark.slow
def test_the_tutorial(empty: Path) -> None:
    """All blocks that begin with a comment, in one shell, as a reader types them. Edits are commands too."""
    blocks = TYPED.findall((ROOT / TUTORIAL).read_text())
    assert len(blocks) >= 14
    typed = "".join(f"{block}echo {MARK}$?\n{PAUSE if 'cp ' in block else ''}" for block, _output in blocks)
    done = run(typed, empty)
    said = re.split(rf"^{MARK}(\d+)\n", done.text, flags=re.MULTILINE)
    assert len(said) == 2 * len(blocks) + 1, done.text
    for (block, output), printed, code in zip(blocks, said[::2], said[1::2], strict=False):
        assert int(code) in (0, 1), f"{block}{printed}"
        assert "Traceback" not in printed, f"{block}{printed}"
        missing = shape(output) - shape(printed)
        assert not missing, f"{block}{missing} is not in\n{printed}"


# -- every other block ------------------------------------------------------------------------------------

# How a command of the docs is tried when it cannot be run as it stands: pattern -> (what is run, why).
INSTEAD: tuple[tuple[str, str, str], ...] = (
    (r"uv run pytest.*|.*pytest .*", "pytest --version", "this test is a part of it"),
    (
        r"(?:uv run )?python (bench/\w+\.py).*",
        r"python \1 --help",
        "minutes; docs/performance.md has the results",
    ),
    (
        r"(?:uv run )?doit -d example/(study|frontier|train) (.*)",
        r"doit -d example/\1 list",
        "minutes of measuring",
    ),
    (r"uv sync.*|(?:uv )?pip install.*|git clone.*", "true", "installs; CI begins with it"),
    (r"uv run (ruff|mypy).*", r"\1 --version", "CI runs it"),
    (r"uv run mlx_lm\.(\w+) .*", r"python -m mlx_lm \1 --help", "minutes of training"),
    (r"mlx_lm\.server .*", "python -m mlx_lm server --help", "does not end"),
    (r".*completion (zsh|fish).*", r"builder completion \1 > /dev/null", "these shells may not be installed"),
    (r"(?:uv run )?doit (?:eval|threshold|release|rollback)\b.*", "doit list", "the tutorial runs it"),
    (r"(?:uv run )?doit publish:.*", "doit list", "tests/publish runs it"),
    (
        r"(?:uv run )?python example/make_data.py.*",
        "python example/make_data.py made",
        "its default is the repository",
    ),
    (r"(?:uv run )?python docs/reference_pages.py", "python docs/reference_pages.py", "in the copy"),
    (r"(?:uv run )?python docs/study_page.py.*", "python docs/study_page.py made", "in the copy"),
    (r"(?s)mlx_lm\.fuse .*", "python -m mlx_lm fuse --help", "bench/build.py runs it"),
    (r".*b3sum.*", "doit verify", "b3sum may not be installed"),
    (r"bash \.ci/run", "bash -n .ci/run", "runs this test"),
)


def commands(page: str) -> list[str]:
    """Every command of the page's blocks: lines of `sh`, `bash` as a whole, lines after `$ ` elsewhere."""
    found = []
    for language, body in FENCE.findall(page):
        if language == "bash":  # a script
            found.append(body.strip())
            continue
        for line in body.splitlines():
            line = re.sub(r"\s+#.*$", "", line)
            if language in ("sh", "console"):
                found.append(line.strip().removeprefix("$ "))
            elif not language and line.startswith("$ "):
                found.append(line[2:])
    return [line for line in found if line and not line.startswith("#")]


def copy_of_the_repository(root: Path) -> Sandbox:
    """What git knows of this repository, with a store of its own."""
    names = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, root / name)
    return Sandbox(root)


@pytest.mark.slow
def test_every_other_command(tmp_path: Path) -> None:
    box = copy_of_the_repository(tmp_path / "copy")
    assert box.doit().code == 0
    tried: dict[str, str] = {}
    for page in PAGES:
        if page == TUTORIAL:
            continue
        for command in commands((ROOT / page).read_text()):
            tried.setdefault(instead(command), f"{page}: {command}")
    assert len(tried) > 20
    wrong = {}
    for command, where in tried.items():
        done = run(command, box.root)
        if done.code not in (0, 1) or "Traceback" in done.text:
            wrong[where] = f"{command}: {done.code}\n{done.text[-400:]}"
    assert not wrong, "\n".join(f"{where}: {what}" for where, what in wrong.items())


def instead(command: str) -> str:
    for pattern, replacement, _why in INSTEAD:
        if match := re.fullmatch(pattern, command):
            return match.expand(replacement)
    return command.removeprefix("uv run ")


@pytest.mark.slow
def test_the_python_page(tmp_path: Path) -> None:
    box = copy_of_the_repository(tmp_path / "copy")
    page = (ROOT / "docs/python.md").read_text()
    blocks = FENCE.findall(page)
    program = "\n".join(body for language, body in blocks if language == "python")
    done = subprocess.run([sys.executable, "-c", program], cwd=box.root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected = "".join(body for language, body in blocks if language == "text")
    assert shape(expected) - shape(done.stdout) == set(), done.stdout


def test_pages_link_to_what_is_there() -> None:
    for page in PAGES:
        file = ROOT / page
        for link in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", file.read_text()):
            assert (file.parent / link).exists(), f"{page}: {link}"


def test_the_command_line_page_lists_every_command_and_state() -> None:
    page = (ROOT / "docs/cli.md").read_text()
    words = [*get_args(State), *get_args(Verdict), *COMMANDS, *STANDALONE]
    assert [word for word in words if word not in page] == []


def test_the_json_page_lists_every_word_that_a_program_may_read() -> None:
    page = (ROOT / "docs/json.md").read_text()
    sources = [file.read_text() for file in (ROOT / "builder/commands").glob("*.py")]
    documents = {name for text in sources for name in re.findall(r'print_json\(\s*"(\w+)"', text)}
    assert {"gc", "status", "verify"} <= documents
    words = [f"modelkiln/{name}/1" for name in documents]
    words += [kind.name.lower() for kind in Kind]
    words += get_args(State)
    words += [kind.__name__ for kind in get_args(Event)]
    assert [word for word in words if f"`{word}`" not in page] == []


def test_the_store_format_names_every_place(tmp_path: Path) -> None:
    page = (ROOT / "docs/store-format.md").read_text()
    tree = next(body for _, body in FENCE.findall(page) if body.startswith("store/"))
    names = [name for name, is_a in vars(Store).items() if isinstance(is_a, property) and name[0] != "_"]
    places = [getattr(Store(tmp_path), name).name for name in names]
    assert {"blobs", "state.sqlite"} <= {*places}
    places += ["checkouts", FORMER, "bases/<key>"]
    assert f"`{NAME}`" in page
    assert [place for place in places if f"\n  {place}" not in tree] == []


def test_the_readmes_table_is_the_reports() -> None:
    """To renew it: `python docs/study_page.py`; put docs/study/phase8-table.md between the marks."""
    page = (ROOT / "README.md").read_text()
    found = re.search(r"<!-- study: (\S+), .* -->\n(.*)<!-- /study -->\n", page, re.DOTALL)
    assert found is not None
    assert found[2] == (ROOT / found[1]).read_text()
