"""A signing key in the keychain of the system. The keychain of these tests is a dictionary."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import keyring
import pytest
from keyring.backend import KeyringBackend
from keyring.errors import KeyringLocked

from builder.remote import signing
from builder.remote.keychain import KeychainMissing, KeychainUnusable
from builder.remote.signing import SigningKeyInvalid, is_signed, kept_in, new_signer, own_signer


class Chain(KeyringBackend):
    priority = 1  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[tuple[str, str], str] = {}
        self.locked = False

    def get_password(self, service: str, username: str) -> str | None:
        if self.locked:
            raise KeyringLocked("the person said no")
        return self.kept.get((service, username))

    def set_password(self, service: str, username: str, password: str) -> None:
        if self.locked:
            raise KeyringLocked("the person said no")
        self.kept[service, username] = password

    def delete_password(self, service: str, username: str) -> None:
        del self.kept[service, username]


@pytest.fixture
def chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Chain]:
    former, found = keyring.get_keyring(), Chain()
    monkeypatch.setattr(signing, "key_place", lambda: tmp_path / "config" / "signing.pem")
    monkeypatch.delenv(signing.VARIABLE, raising=False)
    keyring.set_keyring(found)
    yield found
    keyring.set_keyring(former)


def test_a_key_in_the_keychain_signs_and_leaves_no_file(chain: Chain, tmp_path: Path) -> None:
    assert own_signer() is None
    made = new_signer(in_keychain=True)
    assert [file.name for file in (tmp_path / "config").iterdir()] == ["signing.keychain"]
    assert "PRIVATE" not in (tmp_path / "config" / "signing.keychain").read_text()
    assert kept_in() == "the keychain"
    again = own_signer()
    assert again is not None
    assert again.public == made.public
    assert is_signed(again.sign("v1/x", b"text"), "v1/x", b"text", made.public)
    with pytest.raises(SigningKeyInvalid, match="the keychain cannot be used: there is one already"):
        new_signer()


def test_a_keychain_that_says_no_is_one_line(chain: Chain) -> None:
    chain.locked = True
    with pytest.raises(KeychainUnusable, match="cannot be used: the person said no"):
        new_signer(in_keychain=True)
    assert own_signer() is None
    chain.locked = False
    new_signer(in_keychain=True)
    chain.kept.clear()
    with pytest.raises(KeychainUnusable, match="it has no key of ssh-ed25519"):
        own_signer()


def test_without_the_extra(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "keyring", None)
    with pytest.raises(KeychainMissing, match='the extra "keychain"'):
        new_signer(in_keychain=True)
    assert own_signer() is None
