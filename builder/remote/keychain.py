"""The signing key in the keychain of the system: the one of macOS, or the secret service of a desktop.

A note beside the place of the key file says which key that is. Without the note no keychain is asked, so
nobody is asked for a password who has no key there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from builder.console.words import one_line
from builder.errors import BuildError

_SERVICE = "modelkiln"


class KeychainUnusable(BuildError):
    """the keychain of this system cannot be used: {what}."""

    exit_code = 2
    hint = "`builder trust --new` without --keychain keeps the key in a file that only you can read."


class KeychainMissing(BuildError):
    """the keychain needs the extra "keychain", which is not installed."""

    exit_code = 2
    hint = "Install it: uv sync --extra keychain, or pip install 'modelkiln[keychain]'."


def noted(note: Path) -> str:
    """The public key whose private half is in the keychain. Empty where there is none."""
    try:
        return note.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def load(public: str) -> str:
    """The private key. Raises KeychainUnusable, KeychainMissing."""
    keyring, errors = _library()
    try:
        found = keyring.get_password(_SERVICE, public)
    except errors.KeyringError as error:
        raise KeychainUnusable(what=one_line(error, 160)) from error
    if not found:
        raise KeychainUnusable(what=f"it has no key of {public[:40]}...")
    return str(found)


def save(public: str, private: str, note: Path) -> None:
    """Keeps a private key. Raises KeychainUnusable, KeychainMissing."""
    keyring, errors = _library()
    try:
        keyring.set_password(_SERVICE, public, private)
        kept = keyring.get_password(_SERVICE, public)
    except errors.KeyringError as error:
        raise KeychainUnusable(what=one_line(error, 160)) from error
    if kept != private:
        raise KeychainUnusable(what="it does not keep what it is given")
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(f"{public}\n", encoding="utf-8")
    except OSError as error:
        raise KeychainUnusable(what=f"{note}: {error.strerror}") from error


def _library() -> tuple[Any, Any]:
    try:
        import keyring
        import keyring.errors
    except ImportError:
        raise KeychainMissing() from None
    return keyring, keyring.errors
