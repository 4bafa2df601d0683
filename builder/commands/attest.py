"""`builder attest TARGET`: an in-toto statement about a built target, on stdout."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from builder.commands.base import ProjectCommand
from builder.errors import BuildError
from builder.project import Project
from builder.status import find_targets


class NotBuilt(BuildError):
    """{target} is not built."""

    hint = "`builder build {target}` builds it, `builder why {target}` says why it is not."


OPT_SHA256: Mapping[str, Any] = {
    "name": "sha256",
    "long": "sha256",
    "type": bool,
    "default": False,
    "help": "SHA-256 of every file too, which reads all of them",
}


class Attest(ProjectCommand):
    name = "attest"
    doc_purpose = "write an in-toto statement (SLSA provenance) about a built target"
    doc_usage = "TARGET"
    cmd_options = (OPT_SHA256,)

    def run(self, project: Project, options: Mapping[str, Any], names: Sequence[str]) -> int:
        from builder.attest import statement
        from builder.store import records

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
            print(json.dumps(statement(manifest, sha256), indent=2))
        return 0
