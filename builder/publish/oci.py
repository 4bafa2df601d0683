"""Publishing to an OCI registry as a CNCF ModelPack artifact: one layer for each file, the manifest last.

The manifest holds no time and no owner, so the same model has the same digest in each repository. A blob that
the registry has in another of our repositories is mounted, and not sent.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from builder.console.events import Emit, Sending
from builder.publish.bundle import ATTESTATION, CARD, Bundle, Change, File, Plan, of_bytes
from builder.publish.errors import PlaceFailed, PlaceRefused
from builder.publish.registry import Registry
from builder.spec.destinations import OciPlace
from builder.store.statcache import StatCache

_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_ARTIFACT = "application/vnd.cncf.model.manifest.v1+json"
_CONFIG = "application/vnd.cncf.model.config.v1+json"
_LAYER = "application/vnd.cncf.model.{}.v1.raw"
_OURS = "org.modelkiln.target"
_FACT = "oci"
_WEIGHTS = (".safetensors", ".gguf")
_DOCS = (CARD, ATTESTATION, ".svg")


def artifact(bundle: Bundle) -> tuple[bytes, File]:
    """The manifest of a bundle, and its config blob. The same files give the same bytes."""
    files = sorted(bundle.files, key=lambda file: file.name)
    kind = "gguf" if any(file.name.endswith(".gguf") for file in files) else "safetensors"
    said = {
        "descriptor": {"name": bundle.target},
        "config": {"format": kind},
        "modelfs": {"type": "layers", "diffIds": [f"sha256:{file.sha256}" for file in files]},
    }
    config = of_bytes("config", _json(said))
    manifest = {
        "schemaVersion": 2,
        "mediaType": _MANIFEST,
        "artifactType": _ARTIFACT,
        "config": _descriptor(_CONFIG, config),
        "layers": [
            {
                **_descriptor(_LAYER.format(_kind(file.name)), file),
                "annotations": {
                    "org.cncf.model.filepath": file.name,
                    "org.opencontainers.image.title": file.name,
                },
            }
            for file in files
        ],
        "annotations": {_OURS: bundle.target},
    }
    return _json(manifest), config


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _descriptor(kind: str, file: File) -> dict[str, Any]:
    return {"mediaType": kind, "digest": f"sha256:{file.sha256}", "size": file.size}


def _kind(name: str) -> str:
    if name.endswith(_WEIGHTS):
        return "weight"
    return "doc" if name.endswith(_DOCS) else "weight.config"


class Oci:
    """One tag of a registry, as `plan` saw it and `apply` moves it."""

    def __init__(self, place: OciPlace, cache: StatCache) -> None:
        self._place = place
        self._cache = cache
        self._registry = Registry(place)

    def plan(self, bundle: Bundle) -> Plan:
        """What the registry lacks. Raises PlaceRefused for a tag that is not ours, PlaceFailed."""
        manifest, _ = artifact(bundle)
        answer = self._registry.ask("GET", self._tag, {"Accept": _MANIFEST}, allowed=(200, 404))
        if answer.status == 200 and answer.body == manifest:
            same = tuple(Change(file.name, file.size, "same") for file in bundle.files)
            return Plan(str(self._place), bundle, same, exists=True, state=_digest(manifest))
        if answer.status == 200 and not _is_ours(answer.body):
            what = f"the tag {self._place.tag} exists, and was not published by this program"
            raise PlaceRefused(to=self._place, what=what, hint="Name another tag or repository.")
        changes = [
            Change(file.name, file.size, "same" if file.sha256 and self._has(file) else "send")
            for file in bundle.files
        ]
        # The tag still shows something else: exists=False keeps a plan of known blobs from being empty.
        return Plan(str(self._place), bundle, tuple(changes), exists=False)

    def apply(self, made: Plan, *, emit: Emit) -> None:
        """Sends or mounts what is lacking, then the manifest. Raises PlaceFailed."""
        manifest, config = artifact(made.bundle)
        wanted = {*made.named("send")}
        sending = [file for file in made.bundle.files if file.name in wanted]
        done, total = 0, sum(file.size for file in sending)
        for file in [*sending, config]:
            if not self._has(file):
                self._send(file)
            done += file.size
            emit(Sending(str(self._place), min(done, total), total))
        self._registry.ask("PUT", self._tag, {"Content-Type": _MANIFEST}, manifest, allowed=(201,))
        shown = self._registry.ask("GET", self._tag, {"Accept": _MANIFEST}, allowed=(200, 404))
        if shown.body != manifest:
            what = "the registry took the manifest, and does not show it as it was sent"
            raise PlaceFailed(to=self._place, what=what, hint="Look at the registry before you use it.")
        for file in made.bundle.files:
            self._cache.put(_FACT, f"{self._place.registry} {file.sha256}", self._place.repository.encode())

    @property
    def _tag(self) -> str:
        return f"/v2/{self._place.repository}/manifests/{self._place.tag}"

    def _has(self, file: File) -> bool:
        path = f"/v2/{self._place.repository}/blobs/sha256:{file.sha256}"
        return self._registry.ask("HEAD", path, allowed=(200, 404)).status == 200

    def _send(self, file: File) -> None:
        digest = f"sha256:{file.sha256}"
        known = self._cache.get(_FACT, f"{self._place.registry} {file.sha256}")
        other = known.decode() if known else ""
        start = f"/v2/{self._place.repository}/blobs/uploads/"
        if other and other != self._place.repository:
            start += f"?mount={digest}&from={other}"
        opened = self._registry.ask("POST", start, allowed=(201, 202))
        if opened.status == 201:
            return
        where = opened.headers.get("location", "")
        joined = f"{where}{'&' if '?' in where else '?'}digest={digest}"
        kind = {"Content-Type": "application/octet-stream"}
        self._registry.ask("PUT", joined, kind, file.source, size=file.size, allowed=(201,))


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _is_ours(content: bytes) -> bool:
    try:
        said: Mapping[str, Any] = json.loads(content)
        return _OURS in (said.get("annotations") or {})
    except (ValueError, AttributeError):
        return False
