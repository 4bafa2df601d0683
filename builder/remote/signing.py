"""Signatures of texts: who says that a record, a manifest or a result is right.

A signature is a DSSE envelope (github.com/secure-systems-lab/dsse) around an in-toto statement that names
the BLAKE3 of the text's exact bytes. Keys are Ed25519, as OpenSSH has them. The private key is a file of
this user, never a part of a project.
"""

from __future__ import annotations

import base64
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from builder.errors import BuildError
from builder.keys import Digest, digest_bytes
from builder.remote import keychain
from builder.spec.remotes import public_bytes, public_text

VARIABLE = "BUILDER_SIGNING_KEY"  # the path of a private key, or the key itself
_TYPE = "application/vnd.in-toto+json"
_STATEMENT = "https://in-toto.io/Statement/v1"
_PREDICATE = "urn:modelkiln:text:1"
_ID = 32  # hex digits of the digest of a public key


class SigningKeyInvalid(BuildError):
    """the signing key {place} cannot be used: {what}."""

    exit_code = 2
    hint = "`builder trust --new` makes one. BUILDER_SIGNING_KEY names another file, or holds a key."


class CryptographyMissing(BuildError):
    """signatures need the extra "remote", which is not installed."""

    exit_code = 2
    hint = "Install it: uv sync --extra remote, or pip install 'modelkiln[remote]'."


@dataclass(frozen=True)
class Signer:
    """Whoever signs what this machine pushes. `key` is a private key of `cryptography`."""

    key: Any

    @property
    def public(self) -> bytes:
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        return bytes(self.key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw))

    @property
    def id(self) -> str:
        return signer_id(self.public)

    def sign(self, path: str, text: bytes) -> bytes:
        """The envelope for a text that lies at `path`."""
        payload = _statement(path, digest_bytes(text))
        made = {
            "payloadType": _TYPE,
            "payload": base64.b64encode(payload).decode(),
            "signatures": [
                {"keyid": self.id, "sig": base64.b64encode(self.key.sign(_encoded(payload))).decode()}
            ],
        }
        return (json.dumps(made, sort_keys=True) + "\n").encode()


def signer_id(public: bytes) -> str:
    """How signatures of a key are found. It is a hint: the key itself decides."""
    return digest_bytes(public)[:_ID]


def is_signed(envelope: bytes, path: str, text: bytes, public: bytes) -> bool:
    """Whether the holder of the key says that a text with these bytes belongs to `path`."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        said = json.loads(envelope)
        payload = base64.b64decode(said["payload"], validate=True)
        given = [base64.b64decode(one["sig"], validate=True) for one in said["signatures"]]
        if said["payloadType"] != _TYPE:
            return False
    except (ValueError, KeyError, TypeError):
        return False
    if payload != _statement(path, digest_bytes(text)):
        return False
    key = Ed25519PublicKey.from_public_bytes(public)
    for signature in given:
        try:
            key.verify(signature, _encoded(payload))
            return True
        except InvalidSignature:
            continue
    return False


def trusted_keys(trust: Mapping[str, str]) -> dict[str, bytes]:
    """Signer id -> public key, of the keys that a remote declares."""
    require_cryptography(bool(trust))
    keys = filter(None, map(public_bytes, trust.values()))
    return {signer_id(key): key for key in keys}


def require_cryptography(needed: bool = True) -> None:
    """Raises CryptographyMissing."""
    if needed:
        try:
            import cryptography  # noqa: F401
        except ImportError:
            raise CryptographyMissing() from None


# -- the key of this user -----------------------------------------------------------------------------------


def key_place() -> Path:
    """Where this user's private key lies or would lie."""
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "modelkiln" / "signing.pem"
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "modelkiln" / "signing.pem"


def own_signer() -> Signer | None:
    """Who signs here; None where this user has no key.

    Raises SigningKeyInvalid, CryptographyMissing, and what keeps a key in the keychain from being read.
    """
    given = os.environ.get(VARIABLE, "")
    if given.lstrip().startswith("-----BEGIN"):
        return Signer(_loaded(given.encode(), VARIABLE))
    place = Path(given).expanduser() if given else key_place()
    if not place.exists() and not given:
        public = keychain.noted(_note())
        return Signer(_loaded(keychain.load(public).encode(), "in the keychain")) if public else None
    try:
        return Signer(_loaded(place.read_bytes(), str(place)))
    except OSError as error:
        raise SigningKeyInvalid(place=place, what=os.strerror(error.errno or 0)) from error


def kept_in() -> str:
    """Where this user's key is, for people."""
    place = key_place()
    return "the keychain" if not place.exists() and keychain.noted(_note()) else str(place)


def _note() -> Path:
    return key_place().with_name("signing.keychain")


def new_signer(*, in_keychain: bool = False) -> Signer:
    """Makes this user's key, which only this user may read. Raises SigningKeyInvalid where there is one."""
    require_cryptography()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    key, place = Ed25519PrivateKey.generate(), key_place()
    data = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    if place.exists() or keychain.noted(_note()):
        what = "there is one already, and it stays"
        raise SigningKeyInvalid(place=kept_in(), what=what, hint="`builder trust` prints it.")
    if in_keychain:
        made = Signer(key)
        keychain.save(public_line(made), data.decode(), _note())
        return made
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(data)
    except FileExistsError:
        what = "there is one already, and it stays"
        raise SigningKeyInvalid(place=place, what=what, hint="`builder trust` prints it.") from None
    except OSError as error:
        raise SigningKeyInvalid(place=place, what=os.strerror(error.errno or 0)) from error
    return Signer(key)


def public_line(signer: Signer) -> str:
    """The public key as a line for [remote.NAME.trust]."""
    return public_text(signer.public)


def _loaded(data: bytes, place: str) -> Any:
    require_cryptography()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_ssh_private_key

    load: Any = load_ssh_private_key if b"OPENSSH PRIVATE KEY" in data else load_pem_private_key
    try:
        key = load(data, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        what = "it has a password" if isinstance(error, TypeError) else "it is not a private key"
        raise SigningKeyInvalid(place=place, what=what) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise SigningKeyInvalid(place=place, what="it is not an Ed25519 key")
    return key


def _statement(path: str, digest: Digest) -> bytes:
    subject = [{"name": path, "digest": {"blake3": str(digest)}}]
    said = {"_type": _STATEMENT, "subject": subject, "predicateType": _PREDICATE, "predicate": {}}
    return json.dumps(said, sort_keys=True).encode()


def _encoded(payload: bytes) -> bytes:
    """What is signed: DSSE's pre-authentication encoding."""
    return b"DSSEv1 %d %b %d %b" % (len(_TYPE), _TYPE.encode(), len(payload), payload)
