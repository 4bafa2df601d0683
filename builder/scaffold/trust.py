"""Adds a public key to [remote.NAME.trust], and keeps a person's comments, order and format."""

from __future__ import annotations

from typing import Any


def add_trust(text: str, remote: str, name: str, key: str) -> str:
    """The text of the declaration in which a remote trusts one more key, or another key of that name."""
    import tomlkit

    document: Any = tomlkit.parse(text)
    table = document["remote"][remote]
    if "trust" not in table:
        table["trust"] = tomlkit.table()
    table["trust"][name] = key
    return tomlkit.dumps(document)
