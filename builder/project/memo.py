"""The keys of all targets, remembered from the last plan that was made of the very same inputs.

Planning a thousand targets hashes 50 000 block descriptions. Their keys depend on nothing but the text of
artifacts.toml, the digests of the sources and this program's own code: with those unchanged, the keys of the
last plan are the keys. Anything else, or any doubt, plans again.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from builder.errors import BuildError
from builder.keys import Key, digest_bytes, make_key
from builder.plan.plan import Unknown
from builder.store import records

if TYPE_CHECKING:
    from builder.project.project import Project

_CODE = ("*.py", "sources/*.py")  # whatever can change a key


def inputs(project: Project) -> Key | None:
    """The identity of everything that the keys of all targets depend on; None while a source is unknown."""
    from builder.project.project import structure_key, toolchain

    spec = project.spec
    parts: list[object] = []
    try:
        declared = digest_bytes(spec.file.read_bytes())
        for name in sorted({model.base for model in spec.models.values()}):
            located = project.base_files(spec.bases[name])
            if isinstance(located, Unknown):
                return None
            weights, aux = located
            structure = records.read(project.store, structure_key(weights))
            if structure is None:
                return None
            files = [[entry.name, entry.blob.digest, entry.blob.size] for entry in aux]
            parts.append([name, weights, structure.blob.digest, files])
        for name in sorted({model.adapter for model in spec.models.values() if model.adapter}):
            key = project.adapter_key(spec.adapters[name])
            if key is None:
                return None
            parts.append([name, key])
        for name in sorted(name for name, variant in spec.variants.items() if variant.learned):
            text = project.calibration(spec.variants[name])
            if isinstance(text, Unknown):
                return None
            parts.append([name, text])
    except (BuildError, OSError):
        return None
    strict = toolchain() if spec.build.strict_toolchain else ""
    return make_key("index/1", _code(), declared, parts, strict)


@cache
def _code() -> str:
    """Digest of the modules that make keys: another version of them never takes over an index."""
    here = Path(__file__).parent
    files = sorted(file for pattern in _CODE for file in here.glob(pattern))
    return digest_bytes(b"".join(file.name.encode() + file.read_bytes() for file in files))
