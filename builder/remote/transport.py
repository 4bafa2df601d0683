"""What a remote store must be able to do, and the errors of those that cannot.

`folder.py` does it with files, `bucket.py` with object stores and web servers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from builder.errors import BuildError

LARGEST_TEXT = 16 << 20  # bytes: a record, a manifest, a result or a root is smaller


class RemoteError(BuildError):
    """remote {remote}: {what}."""

    exit_code = 2


class RemoteUnreachable(RemoteError):
    """remote {remote} cannot be reached: {what}."""

    hint = "What was transferred is kept. The same command goes on from there. `--no-remote` does without."


class RemoteRefused(RemoteError):
    """remote {remote} refuses: {what}."""

    hint = "Check your credentials and what they may do: `builder remote check {remote}`."


class RemoteReadOnly(RemoteError):
    """remote {remote} can only be read: {what}."""

    hint = "Push to a bucket (s3, gs, az) or to a folder."


class RemoteFull(RemoteError):
    """remote {remote} is full: {what}."""

    hint = "`builder remote gc {remote} --dry-run` shows what can be freed."


class NoRemoteStore(RemoteError):
    """remote {remote}: there is no store at {url}."""

    hint = "Check `url`. `builder remote init {remote}` makes a new store there."


class NoCredentials(RemoteError):
    """remote {remote}: there are no credentials for {url}."""

    hint = (
        "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE. "
        "For a public bucket set AWS_SKIP_SIGNATURE=true."
    )


class ExtraMissing(RemoteError):
    """remote {remote} needs the extra "remote", which is not installed."""

    hint = "Install it: uv sync --extra remote, or pip install 'modelkiln[remote]'."


class Interrupted(RemoteError):
    """remote {remote}: {path} broke off, and this server cannot go on in the middle."""


@dataclass(frozen=True)
class Entry:
    """An object: its path, its size in bytes, and when it was written, in seconds by the server's clock."""

    path: str
    size: int
    modified: float


class Transport(Protocol):
    """One remote store. Paths are those of `layout`. Every method raises RemoteError."""

    name: str
    url: str
    can_write: bool
    can_list: bool
    forks: bool  # whether a process that has used it may fork

    def read(self, path: str) -> bytes | None:
        """A whole small object; None where it is missing or larger than any of our texts."""

    def stream(self, path: str) -> Iterator[bytes] | None:
        """The bytes of an object, from the first to the last. None where it is missing."""

    def head(self, path: str) -> Entry | None:
        """One object; None where it is missing."""

    def list(self, prefix: str) -> Iterator[Entry]:
        """Every object below a prefix that ends with a slash."""

    def write(self, path: str, data: bytes) -> None:
        """A small object, whole or not at all, in the place of what is there."""

    def upload(self, path: str, chunks: Iterable[bytes | memoryview]) -> None:
        """An object of any size, whole or not at all. What `chunks` raises leaves nothing."""

    def create(self, path: str, data: bytes) -> bool:
        """A small object where there is none. False where there is one, which stays."""

    def replace(self, path: str, former: bytes, data: bytes) -> bool:
        """A small object in the place of `former`. False where something else is there, which stays."""

    def delete(self, paths: Sequence[str]) -> None:
        """Deletes objects. What is missing already is no error."""
