"""The tree of all errors that a user can cause.

The docstring of a class is the first line of its message: a `str.format` template over the keyword arguments.
`hint` says what to do. `exit_code` is the exit code of the process: 1 for failed, 2 for an error while
running, 3 for a bad declaration or an unknown name. One place (`builder.commands`) turns a BuildError into
text. Any other exception is a bug of ours and shows a traceback.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar


class BuildError(Exception):
    """{what}"""

    exit_code: ClassVar[int] = 1
    hint: ClassVar[str] = ""

    def __init__(self, *, hint: str | None = None, **fields: object) -> None:
        self.fields = fields
        self.hint_text = self.hint.format(**fields) if hint is None else hint  # given text is not a template
        super().__init__(self.message)

    @property
    def message(self) -> str:
        template = " ".join((type(self).__doc__ or "").split())
        return template.format(**self.fields)

    def __str__(self) -> str:
        return f"{self.message}\n  {self.hint_text}" if self.hint_text else self.message

    @property
    def report(self) -> str:
        """What a person is told: the message, the name under which docs/errors.md lists it, and the hint."""
        told = f"{self.message} [{type(self).__name__}]"
        return f"{told}\n  {self.hint_text}" if self.hint_text else told

    def __reduce__(self) -> tuple[object, ...]:
        """Pickles by class and fields, because errors cross process boundaries (`doit -n`)."""
        return (_rebuild, (type(self), self.fields, self.hint_text))


def _rebuild(cls: type[BuildError], fields: dict[str, object], hint: str) -> BuildError:
    error = cls(hint="", **fields)
    error.hint_text = hint
    return error


def described_error(error: BuildError) -> dict[str, Any]:
    """An error for another process, as JSON values."""
    kind = type(error)
    return {
        "module": kind.__module__,
        "class": kind.__qualname__,
        "fields": {name: str(value) for name, value in error.fields.items()},
        "hint": error.hint_text,
    }


def error_from(described: Mapping[str, Any]) -> BuildError:
    """The error that `described_error` described."""
    kind: type[BuildError] = getattr(import_module(described["module"]), described["class"])
    error = kind(hint="", **described["fields"])
    error.hint_text = described["hint"]
    return error


class SpecError(BuildError):
    """{problems}"""

    exit_code = 3


class SourceError(BuildError):
    """a source cannot be used: {what}"""


class SourceMissing(SourceError):
    """{table}: {path} does not exist."""

    hint = "Correct the path in artifacts.toml, or put the files there."


class SourceInvalid(SourceError):
    """{table}: {path}: {what}."""


def unreadable(table: str, path: Path, error: OSError) -> SourceInvalid:
    """What a file of a source is that the system does not read."""
    return SourceInvalid(table=table, path=path, what=f"cannot be read ({error.strerror or error})")


class SourceChanged(BuildError):
    """{source}: {path} changed while it was being read."""

    exit_code = 2
    hint = "No wrong result was kept. Run the same command again."


class StoreError(BuildError):
    """store {path}: {what}."""

    exit_code = 2


class StoreFull(StoreError):
    """store {path}: {what}."""

    hint = "`doit gc --dry-run` shows what can be freed."


class GcRefused(BuildError):
    """gc refuses: {what}."""

    exit_code = 2


class EngineError(BuildError):
    """{target}: {what}."""

    exit_code = 2
