"""The keys of all targets, remembered from the last plan that was made of the very same inputs.

Planning a thousand targets hashes 50 000 block descriptions. Their keys depend on nothing but the text of
artifacts.toml, the digests of the sources and this program's own code: with those unchanged, the keys of the
last plan are the keys. Anything else, or any doubt, plans again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

from builder import keys
from builder.errors import BuildError
from builder.keys import Key, digest_bytes, make_key
from builder.project.toolchain import toolchain
from builder.sources.catalog import Catalog, structure_key
from builder.sources.facts import Unknown
from builder.sources.own_tokenizer import own_entries
from builder.spec.types import Spec
from builder.store import records
from builder.store.statcache import StatCache

# Every module that planning can reach, and so whatever can change a key (a test walks the imports).
CODE = (
    "*.py",
    "console/words.py",
    "spec/*.py",
    "store/*.py",
    "store/disk/*.py",
    "weights/*.py",
    "gguf/*.py",
    "sources/**/*.py",
    "plan/*.py",
    "project/*.py",
)
_KIND = "index"


class Known(NamedTuple):
    """The keys of a target: of what it is, and of what can change a figure that is measured of it."""

    key: Key
    measured: Key


def recall(cache: StatCache, inputs: Key) -> dict[str, Known] | None:
    """The keys that a plan of these inputs gave; None when nothing is remembered."""
    text = cache.get(_KIND, inputs)
    return {name: Known(*keys) for name, keys in json.loads(text).items()} if text else None


def remember(cache: StatCache, inputs: Key, known: Mapping[str, Known]) -> None:
    cache.put(_KIND, inputs, json.dumps(dict(known)).encode())


def inputs(spec: Spec, sources: Catalog) -> Key | None:
    """The identity of everything that the keys of all targets depend on; None while a source is unknown."""
    parts: list[object] = []
    if any(variant.goal or variant.experts for variant in spec.variants.values()):
        return None  # their keys depend on what the store holds
    try:
        declared = digest_bytes(spec.text)
        for name in sorted({model.base for model in spec.models.values()}):
            base = sources.base_identity(spec.bases[name])
            if isinstance(base, Unknown):
                return None
            structure = records.read(sources.store, structure_key(base.weights))
            if structure is None:
                return None
            files = [[entry.name, entry.blob.digest, entry.blob.size] for entry in base.aux]
            digests = [base.weights, base.config, base.vocabulary, base.prompts]
            parts.append([name, digests, structure.blob.digest, files])
        for name in sorted({model.adapter for model in spec.models.values() if model.adapter}):
            key = sources.adapter_key(spec.adapters[name])
            if key is None:
                return None
            own = [[e.name, e.blob.digest] for e in own_entries(sources, spec.adapters[name])]
            parts.append([name, key, own] if own else [name, key])
        for name in sorted(name for name, variant in spec.variants.items() if variant.calibration):
            text = sources.calibration(spec.variants[name])
            if isinstance(text, Unknown):
                return None
            parts.append([name, text.digest, text.format])
    except (BuildError, OSError):
        return None
    strict = toolchain() if spec.build.strict_toolchain else ""
    return make_key("index/2", _code(), declared, parts, strict)


@cache
def _code() -> str:
    """Digest of the modules that make keys: another version of them never takes over an index."""
    package = Path(keys.__file__).parent
    files = sorted({file for pattern in CODE for file in package.glob(pattern)})
    return digest_bytes(b"".join(bytes(file.relative_to(package)) + file.read_bytes() for file in files))
