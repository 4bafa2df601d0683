"""A target's manifest as an in-toto statement with SLSA provenance, for other tools to check. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from builder.project.toolchain import version_of
from builder.store.types import Manifest

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:modelkiln:build:1"


def statement(manifest: Manifest, sha256: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The statement about all files of a target. `sha256`: file name -> digest, for tools without BLAKE3.

    in-toto does not name BLAKE3, so most of them ignore it. The digests of base and adapter are this
    program's (of names and contents), so they have its name; that of a calibration text is of the file.
    """
    extra = sha256 or {}
    return {
        "_type": STATEMENT,
        "subject": [
            {
                "name": entry.name,
                "digest": {
                    "blake3": str(entry.blob.digest),
                    **({"sha256": extra[entry.name]} if entry.name in extra else {}),
                },
            }
            for entry in manifest.files
        ],
        "predicateType": PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {"target": manifest.name, "settings": dict(manifest.settings)},
                "internalParameters": {"key": str(manifest.key)},
                "resolvedDependencies": _dependencies(manifest),
            },
            "runDetails": {
                "builder": {
                    "id": "urn:modelkiln:builder",
                    "version": {"modelkiln": version_of("modelkiln"), **_strings(manifest.toolchain)},
                },
                "metadata": {"invocationId": str(manifest.key), "finishedOn": manifest.created},
            },
        },
    }


def _dependencies(manifest: Manifest) -> list[dict[str, Any]]:
    inputs = manifest.inputs
    found: list[dict[str, Any]] = [
        {"name": f"{kind}:{inputs[kind]}", "digest": {"modelkiln": str(inputs[f"{kind}_digest"])}}
        for kind in ("base", "adapter")
        if f"{kind}_digest" in inputs
    ]
    if "calibration_digest" in inputs:
        name = f"calibration:{manifest.settings['variant']}"
        found.append({"name": name, "digest": {"blake3": str(inputs["calibration_digest"])}})
    return found


def _strings(values: Mapping[str, object]) -> dict[str, str]:
    return {name: str(value) for name, value in values.items() if name != "made"}
