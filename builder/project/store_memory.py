"""Which stores outside of their checkouts this user has had: one that is gone is not made anew in silence.

A store on a disk that is not mounted looks like a store that was never there. A note for each store is kept
in the user's state folder; a lost note costs the warning and nothing else.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path

from builder.keys import digest_bytes


def is_known(store: Path) -> bool:
    """Whether a store has been seen at this path."""
    return _note(store).is_file()


def remember(store: Path) -> None:
    note = _note(store)
    with suppress(OSError):
        if not note.is_file():
            note.parent.mkdir(parents=True, exist_ok=True)
            note.write_text(f"{store}\n", encoding="utf-8")


def forget(store: Path) -> None:
    with suppress(OSError):
        _note(store).unlink(missing_ok=True)


def _note(store: Path) -> Path:
    return _state() / "stores" / digest_bytes(os.fsencode(store.absolute()))[:32]


def _state() -> Path:
    """The platform's folder for what a program remembers of this user."""
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "modelkiln"
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "modelkiln"
