"""The tokenizer in an adapter's folder, as a catalog knows it: its files, and what differs from the base."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Protocol

from builder.errors import SourceError, SourceInvalid
from builder.keys import Digest, make_key
from builder.sources import base as bases
from builder.sources import tokenizers
from builder.sources.facts import BaseIdentity, OwnTokenizer, Unknown
from builder.spec.types import Adapter, Base, Spec
from builder.store.statcache import StatCache
from builder.store.types import Blob, FileEntry

_KIND = "own-tokenizer"


class Catalog(Protocol):
    """What this module uses of builder.sources.catalog.Catalog."""

    spec: Spec
    cache: StatCache

    def known_digest(self, path: Path) -> Digest | None: ...

    def digest(self, path: Path) -> Digest: ...

    def base_identity(self, base: Base) -> BaseIdentity | Unknown: ...

    def copied_file(self, base: Base, entry: FileEntry) -> bytes: ...


def own_entries(catalog: Catalog, adapter: Adapter) -> tuple[FileEntry, ...]:
    """The files of the tokenizer in an adapter's folder. Raises OSError."""
    entries = []
    for name in tokenizers.own_files(adapter.path):
        path = adapter.path / name
        digest = catalog.known_digest(path) or catalog.digest(path)
        entries.append(FileEntry(name, Blob(digest, path.stat().st_size)))
    return tuple(entries)


def own_tokenizer(catalog: Catalog, adapter: Adapter) -> OwnTokenizer | None:
    """None where the folder holds no tokenizer, or nothing is known of the base yet. Raises SourceInvalid."""
    try:
        own = own_entries(catalog, adapter)
        if not own:
            if adapter.tokenizer == "adapter":
                raise SourceInvalid(
                    table=f"adapter.{adapter.name}",
                    path=adapter.path,
                    what='holds no tokenizer and no chat template, but tokenizer = "adapter" asks for them',
                    hint="Remove that key: targets then have the tokenizer of the base.",
                )
            return None
        try:
            identity = catalog.base_identity(catalog.spec.bases[adapter.base])
        except SourceError:  # the task of the base reports it
            return None
        return None if isinstance(identity, Unknown) else _compared(catalog, adapter, identity, own)
    except OSError as error:
        what = f"its tokenizer cannot be read ({error.strerror or error})"
        raise SourceInvalid(table=f"adapter.{adapter.name}", path=adapter.path, what=what) from error


def _compared(
    catalog: Catalog, adapter: Adapter, base: BaseIdentity, own: tuple[FileEntry, ...]
) -> OwnTokenizer:
    """Remembered by the digests of all files: several of them are parsed for it."""
    declared, in_base = catalog.spec.bases[adapter.base], {entry.name: entry for entry in base.aux}
    names = {entry.name for entry in own}

    def read_base(name: str) -> bytes:
        return catalog.copied_file(declared, in_base[name])

    def read_own(name: str) -> bytes:
        return (adapter.path / name).read_bytes()

    aux = tokenizers.dressed(base.aux, own, tokenizers.has_template(names, read_own))
    key = make_key("own-tokenizer/1", *([[e.name, e.blob.digest] for e in each] for each in (own, base.aux)))
    if known := catalog.cache.get(_KIND, key):
        vocabulary, prompts, differs = json.loads(known)
    else:
        differs = tokenizers.differences(in_base, read_base, names, read_own)
        vocabulary, prompts = bases.prompts_of(
            aux, lambda name: read_own(name) if name in names else read_base(name)
        )
        catalog.cache.put(_KIND, key, json.dumps([vocabulary, prompts, differs]).encode())
    used, settled = adapter.tokenizer == "adapter", adapter.tokenizer is not None
    return OwnTokenizer(own, aux, vocabulary, prompts, used, settled, tuple(differs))
