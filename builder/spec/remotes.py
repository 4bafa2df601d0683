"""What [remote.NAME] means: where a shared store lies, when it is pushed to, and whose signatures count."""

from __future__ import annotations

import base64
import binascii
from pathlib import Path
from urllib.parse import unquote, urlsplit

from builder.console.words import listed, quoted
from builder.spec.problems import Problems
from builder.spec.shape import Values
from builder.spec.sharing import Remote

SCHEMES = ("s3", "gs", "az", "https", "http", "file")
_WEB = ("https", "http")
_KEY_TYPE = b"\x00\x00\x00\x0bssh-ed25519\x00\x00\x00\x20"


def remote(name: str, values: Values, folder: Path, problems: Problems) -> Remote:
    """After a problem the value does not matter, because the parse fails."""
    url = values.get("url") or ""
    place = values.place.key("url")
    scheme = url.partition("://")[0] if "://" in url else ""
    if scheme:
        _check_url(url, scheme, values, problems)
    push = values.given.get("push", "never")
    if scheme in _WEB and push != "never":
        what = f"push = {quoted(push)}, but {scheme} can only be read; remove it"
        problems.add(values.place.key("push"), what)
    for key in ("endpoint", "region", "profile"):
        if values.says(key) and scheme != "s3":
            problems.add(values.place.key(key), f"{key} is for s3://; remove it")
    if values.says("endpoint") and not str(values.get("endpoint") or "http://").startswith(
        ("http://", "https://")
    ):
        problems.add(values.place.key("endpoint"), 'endpoint begins with "https://" or "http://"')
    trust = values.get("trust") or {}
    for label, text in trust.items():
        if public_bytes(text) is None:
            what = f"trust: {quoted(label)} is not a public key; `builder trust` prints yours"
            problems.add(values.place.key("trust"), what)
    if not scheme and "\0" in url:
        problems.add(place, "url has a NUL character, which a path cannot have")
    return Remote(
        name=name,
        url=url,
        folder=_folder(url, scheme, folder),
        push=push,
        endpoint=values.get("endpoint"),
        region=values.get("region"),
        profile=values.get("profile"),
        trust=dict(trust),
    )


def public_bytes(text: str) -> bytes | None:
    """The 32 bytes of an Ed25519 public key as OpenSSH writes it, "ssh-ed25519 AAAA... comment"."""
    kind, _, rest = text.strip().partition(" ")
    try:
        raw = base64.b64decode(rest.partition(" ")[0], validate=True)
    except (binascii.Error, ValueError):
        return None
    right = kind == "ssh-ed25519" and raw.startswith(_KEY_TYPE) and len(raw) == len(_KEY_TYPE) + 32
    return raw[len(_KEY_TYPE) :] if right else None


def public_text(raw: bytes, comment: str = "") -> str:
    """The other way round."""
    return f"ssh-ed25519 {base64.b64encode(_KEY_TYPE + raw).decode()} {comment}".rstrip()


def _check_url(url: str, scheme: str, values: Values, problems: Problems) -> None:
    place = values.place.key("url")
    if scheme not in SCHEMES:
        possible = listed([f"{known}://" for known in SCHEMES], "or")
        what = f"url = {quoted(url)} begins with none of {possible}, and is not a path"
        problems.add(place, what)
        return
    try:
        parts = urlsplit(url)
    except ValueError:
        problems.add(place, f"url = {quoted(url)} is not a URL")
        return
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        what = "url holds a user, a password or a query; secrets never stand in this file"
        problems.add(place, f"{what}. Give them as your provider's own clients do")
    elif scheme == "file" and (parts.netloc or not parts.path):
        problems.add(place, f"url = {quoted(url)}: write file:///FOLDER")
    elif scheme != "file" and not parts.netloc:
        problems.add(place, f"url = {quoted(url)} names no bucket or server")


def _folder(url: str, scheme: str, project: Path) -> Path | None:
    """The folder that a url means: file://, or a path, relative to the project's folder."""
    if scheme == "file":
        return Path(unquote(urlsplit(url).path))
    return None if scheme or "\0" in url else project / Path(url).expanduser()
