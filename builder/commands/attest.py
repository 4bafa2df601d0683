"""`builder attest TARGET...`: prints an in-toto statement about each built target, as a line of JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from doit.exceptions import InvalidCommand

from builder.commands.base import ProjectCommand
from builder.project.opened import NotBuilt
from builder.project.project import Project
from builder.project.targets import find_targets

OPT_SHA256: Mapping[str, Any] = {
    "name": "sha256",
    "long": "sha256",
    "type": bool,
    "inverse": "no-sha256",
    "default": True,
    "help": "add the SHA-256 of every file, which reads all files. BLAKE3 alone is known to few tools",
}


class Attest(ProjectCommand):
    name = "attest"
    doc_purpose = "write an in-toto statement (SLSA provenance) about a built target"
    doc_usage = "TARGET..."
    doc_description = "One statement a line (JSON Lines); all targets must be built, or nothing is written."
    cmd_options = (OPT_SHA256,)

    def run(self, project: Project, options: Mapping[str, Any], names: Sequence[str]) -> int:
        if not names:
            raise InvalidCommand("attest takes a TARGET, for example: attest phase8_5bit")
        from builder.build.attestation import statement
        from builder.store import records

        statements = []
        for name in find_targets(project, names):
            key = project.keys.get(name)
            manifest = records.read_manifest(project.store, key) if key else None
            if manifest is None or not project.is_built(name):
                raise NotBuilt(target=name)
            folder = project.store.models / name
            sha256 = {}
            if options["sha256"]:
                import hashlib

                for entry in manifest.files:
                    with (folder / entry.name).open("rb") as file:
                        sha256[entry.name] = hashlib.file_digest(file, "sha256").hexdigest()
            statements.append(statement(manifest, sha256))
        for one in statements:
            print(json.dumps(one))
        return 0
