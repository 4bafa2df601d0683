"""Asks an OCI registry over HTTP, with the logins that docker and oras keep. No token is shown or stored."""

from __future__ import annotations

import base64
import http.client
import json
import os
import re
import ssl
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

from builder.publish.errors import PlaceFailed
from builder.spec.destinations import OciPlace

_SECONDS = 120
_LOG_IN = "Log in with `docker login {registry}` or `oras login {registry}`."


@dataclass(frozen=True)
class Answer:
    """A status, headers with names in lower case, and the body."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Registry:
    """The registry of a place. A login is asked for once, when the registry wants one."""

    def __init__(self, place: OciPlace) -> None:
        self._place = place
        self._root = f"{'http' if place.is_local else 'https'}://{place.registry}"
        self._login: str | None = None

    def ask(
        self,
        method: str,
        where: str,
        headers: Mapping[str, str] | None = None,
        body: bytes | Path | None = None,
        *,
        size: int = 0,
        allowed: tuple[int, ...],
    ) -> Answer:
        """The answer to one request. `where` is a path or an address. Raises PlaceFailed."""
        address = where if "://" in where else f"{self._root}{where}"
        answer = self._once(method, address, headers or {}, body, size)
        if answer.status == 401 and self._login is None:
            self._login = self._token(answer.headers.get("www-authenticate", ""))
            answer = self._once(method, address, headers or {}, body, size)
        if answer.status not in allowed:
            raise self._refused(method, answer)
        return answer

    def _once(
        self, method: str, address: str, headers: Mapping[str, str], body: bytes | Path | None, size: int
    ) -> Answer:
        sent = dict(headers)
        own = urlsplit(self._root).netloc == urlsplit(address).netloc
        if self._login and own:  # never to another server, where a registry may send uploads
            sent["Authorization"] = self._login
        if isinstance(body, Path):
            with body.open("rb") as file:
                return self._exchange(method, address, {**sent, "Content-Length": str(size)}, file)
        return self._exchange(method, address, {**sent, "Content-Length": str(len(body or b""))}, body)

    def _exchange(self, method: str, address: str, headers: Mapping[str, str], body: Any) -> Answer:
        parts = urlsplit(address)
        try:
            connection = (
                http.client.HTTPSConnection(
                    parts.netloc, timeout=_SECONDS, context=ssl.create_default_context()
                )
                if parts.scheme == "https"
                else http.client.HTTPConnection(parts.netloc, timeout=_SECONDS)
            )
            with_query = f"{parts.path}?{parts.query}" if parts.query else parts.path
            connection.request(method, with_query, body=body, headers=dict(headers))
            answer = connection.getresponse()
            content = answer.read()
            connection.close()
        except (OSError, http.client.HTTPException) as error:
            what = f"the registry cannot be reached ({type(error).__name__}: {error})"
            raise PlaceFailed(to=self._place, what=what) from error
        return Answer(answer.status, {key.lower(): value for key, value in answer.getheaders()}, content)

    def _token(self, challenge: str) -> str:
        """What to send as Authorization, for the challenge of a registry. Raises PlaceFailed."""
        login = _stored(self._place.registry)
        if challenge.lower().startswith("basic"):
            if login is None:
                raise self._failed("the registry wants a login")
            return f"Basic {login}"
        said = dict(re.findall(r'(\w+)="([^"]*)"', challenge))
        if "realm" not in said:
            raise self._failed("the registry wants a login of a kind that is not known here")
        scope = f"repository:{self._place.repository}:pull,push"
        query = urlencode({"service": said.get("service", ""), "scope": scope})
        headers = {"Authorization": f"Basic {login}"} if login else {}
        answer = self._exchange("GET", f"{said['realm']}?{query}", headers, None)
        try:
            found = json.loads(answer.body) if answer.status == 200 else {}
            token = found.get("token") or found.get("access_token")
        except (ValueError, AttributeError):
            token = None
        if not token:
            raise self._failed("the registry gave no token for this login")
        return f"Bearer {token}"

    def _refused(self, method: str, answer: Answer) -> PlaceFailed:
        try:
            said = f" ({json.loads(answer.body)['errors'][0]['message'][:200]})"
        except (ValueError, KeyError, IndexError, TypeError):
            said = ""
        if answer.status in (401, 403):
            return self._failed(f"the login has no right to write there{said}")
        return PlaceFailed(to=self._place, what=f"the registry answered {answer.status} to {method}{said}")

    def _failed(self, what: str) -> PlaceFailed:
        return PlaceFailed(to=self._place, what=what, hint=_LOG_IN.format(registry=self._place.registry))


def _stored(registry: str) -> str | None:
    """The login for a registry as docker keeps it: base64 of user:password, or from its helper program."""
    folder = Path(os.environ.get("DOCKER_CONFIG") or Path("~/.docker").expanduser())
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if isinstance(auth := config.get("auths", {}).get(registry, {}).get("auth"), str) and auth:
        return auth
    helper = config.get("credHelpers", {}).get(registry) or config.get("credsStore")
    if not isinstance(helper, str) or not re.fullmatch(r"[a-z0-9-]+", helper):
        return None
    try:
        done = subprocess.run(
            [f"docker-credential-{helper}", "get"], input=registry, capture_output=True, text=True, timeout=30
        )
        said = json.loads(done.stdout) if done.returncode == 0 else {}
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None
    user, secret = said.get("Username"), said.get("Secret")
    return base64.b64encode(f"{user}:{secret}".encode()).decode() if user and secret else None
