"""The keys of questions: what a suite asks, and what a target that searches its size is judged by."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from builder.errors import BuildError
from builder.keys import Digest, Key, make_key, named_key
from builder.sources.catalog import Catalog
from builder.spec.types import Condition, Suite

SCORER = "scoring/2"  # change it when the same model and questions give other numbers
_NOT_CONTENT = ("name", "data", "batch", "timeout")  # of a suite: what never changes a figure


class QuestionsMissing(BuildError):
    """suite {suite}: {path}: {what}"""

    exit_code = 2
    hint = "Put the file there, or correct `data` in artifacts.toml."


def suite_key(sources: Catalog, folder: Path, suite: Suite) -> Key:
    """What is asked, whatever it is called. `folder` is that of artifacts.toml. Raises QuestionsMissing."""
    content = {k: v for k, v in asdict(suite).items() if k not in _NOT_CONTENT}
    if content["part"] == "all":  # so that the key of a whole suite is what it was before there were parts
        del content["part"]
    data = _digest(sources, suite, suite.data) if suite.data else None
    read_as = None if suite.data is None else "jsonl" if suite.data.suffix == ".jsonl" else "text"
    named = [_digest(sources, suite, file) for file in command_files(suite, folder)]
    return make_key("suite/3", content, data, read_as, named)


def judging_key(sources: Catalog, folder: Path, suites: Sequence[Suite], require: Sequence[Condition]) -> Key:
    """What a search of a size depends on: the questions of `suites`, and what is required of them.

    Raises QuestionsMissing.
    """
    asked = {suite.name: suite_key(sources, folder, suite) for suite in suites}
    conditions = sorted([asked[c.suite], c.metric.name, c.operator, c.value] for c in require)
    return named_key("judging/1", {"require": conditions, "scorer": SCORER})


def _digest(sources: Catalog, suite: Suite, file: Path) -> Digest:
    try:
        return sources.digest(file)
    except OSError as error:
        raise QuestionsMissing(suite=suite.name, path=file, what=error.strerror) from error


def command_files(suite: Suite, folder: Path) -> list[Path]:
    """The files that the words of a command name, also after a `=`, in their order."""
    words = shlex.split(suite.command)
    files = (folder / name for word in words for name in (word, word.partition("=")[2]) if name)
    return [file for file in files if _is_file(file)]


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # too long for a name: it was never meant as one
        return False
