"""What is known about each declared source, from its files and from what the store remembers.

`builder.build.prepare` downloads, imports and inspects. Only files of up to HASH_AT_ONCE are hashed unasked.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from builder.errors import BuildError, SourceChanged, SourceError
from builder.keys import Digest, Key, make_key
from builder.sources import base as bases
from builder.sources.calibration import calibration_of
from builder.sources.contents import CONFIG, INDEX
from builder.sources.facts import (
    NOT_YET,
    AdapterFacts,
    BaseFacts,
    BaseIdentity,
    Calibration,
    Unknown,
    adapter_from_text,
    adapter_to_text,
)
from builder.sources.gguf.location import IMPORTER, resolve_gguf
from builder.sources.own_tokenizer import own_tokenizer
from builder.sources.trained import located
from builder.spec.types import Adapter, Base, GgufSource, Spec, Variant
from builder.store import blobs
from builder.store.disk.identity import Identity, identity
from builder.store.holdings import usable_record, whole_manifest
from builder.store.layout import Store
from builder.store.statcache import StatCache
from builder.store.types import Blob, FileEntry, Manifest
from builder.weights import structure as structures
from builder.weights.structure import Structure, block_of

HASH_AT_ONCE = 64 << 20  # bytes of one file that planning hashes without being asked


@dataclass
class Catalog:
    """The sources of one declaration, as one store knows them."""

    spec: Spec
    store: Store
    cache: StatCache
    _hashed: dict[Path, tuple[Identity, Digest]] = field(default_factory=dict)  # by this process

    # -- bases ---------------------------------------------------------------------------------------

    def base_facts(self, base: Base) -> BaseFacts | Unknown:
        """Raises SourceError for a base that can never be used as declared."""
        identity = self.base_identity(base)
        if isinstance(identity, Unknown):
            return identity
        structure = self.structure(identity.weights)
        return BaseFacts(identity, structure) if structure else Unknown("has not been inspected yet")

    def base_identity(self, base: Base) -> BaseIdentity | Unknown:
        """Digests of everything in a base that can matter, if they are known. Raises SourceError."""
        if isinstance(base.source, GgufSource):
            found = self.imported(base)
            return self.imported_identity(base, found) if found else Unknown("has not been imported yet")
        directory = bases.locate(base)
        if directory is None:
            return Unknown("is not in the local cache of downloads yet")
        files = bases.list_files(base, directory)
        weights = bases.digest_all(files.weights, self.known_digest)
        copied = bases.digest_all(files.copied, self.known_digest)
        if weights is None or copied is None:
            return Unknown(NOT_YET)
        try:
            entries = [
                FileEntry(files.name(path), Blob(digest, path.stat().st_size))
                for path, (_, digest) in zip(files.copied, copied, strict=True)
            ]
            return self._identity(base, weights, entries, lambda name: (directory / name).read_bytes(), None)
        except OSError:  # replaced while it was looked at
            return Unknown("is being written")

    def imported_identity(self, base: Base, manifest: Manifest) -> BaseIdentity:
        """As `base_identity`, from the manifest of an import: nothing is hashed again."""
        blob_of = {entry.name: entry.blob for entry in manifest.files}
        weights = [(n, b.digest) for n, b in blob_of.items() if n == CONFIG or n.endswith(".safetensors")]
        outer = {name for name, _ in weights} | {INDEX}
        copied = [entry for entry in manifest.files if entry.name not in outer]
        return self._identity(
            base, weights, copied, lambda name: blobs.read(self.store, blob_of[name]), manifest.key
        )

    def _identity(
        self,
        base: Base,
        weights: list[tuple[str, Digest]],
        copied: list[FileEntry],
        read: Callable[[str], bytes],
        imported: Key | None,
    ) -> BaseIdentity:
        """Remembered by the digests of the files: two small ones are parsed for it."""
        listed = [[entry.name, entry.blob.digest, entry.blob.size] for entry in copied]
        how = [base.dequantize, base.trust_remote_code, imported]
        key = make_key("identity/2", sorted(weights), listed, how)
        if known := self.cache.get("identity", key):
            digests = [Digest(text) if text else None for text in json.loads(known)]
            first, config, words, prompts, former = digests
            if first and config and words and prompts:
                return BaseIdentity(first, config, words, prompts, tuple(copied), imported, former)
        found = bases.identity_of(
            weights,
            copied,
            read,
            dequantize=base.dequantize,
            trusted=base.trust_remote_code,
            imported=imported,
        )
        digests = [found.weights, found.config, found.vocabulary, found.prompts, found.former]
        self.cache.put("identity", key, json.dumps(digests).encode())
        return found

    def base_directory(self, base: Base) -> Path:
        """The directory of a base's files. For a GGUF the view of its import. Raises SourceError."""
        if isinstance(base.source, GgufSource):
            key = self.gguf_key(base)
            if key is None:
                raise SourceChanged(source=f"base:{base.name}", path=base.source.path)
            return self.store.bases / key
        directory = bases.locate(base)
        if directory is None:
            raise SourceChanged(source=f"base:{base.name}", path=Path(str(base.source)))
        return directory

    def files(self, base: Base) -> tuple[Path, ...]:
        """Every file whose bytes decide what is made of a base. Empty before a download.

        Raises SourceError.
        """
        if isinstance(base.source, GgufSource):
            return (resolve_gguf(base.source.package, base.source.path, f"base.{base.name}"),)
        directory = bases.locate(base)
        if directory is None:
            return ()
        found = bases.list_files(base, directory)
        return (*found.weights, *found.copied)

    def gguf_key(self, base: Base) -> Key | None:
        """The key of the import of a GGUF base. None if the file's digest is unknown. Raises SourceError."""
        assert isinstance(base.source, GgufSource)
        file = resolve_gguf(base.source.package, base.source.path, f"base.{base.name}")
        digest = self.known_digest(file)
        return make_key(IMPORTER, digest) if digest else None

    def imported(self, base: Base) -> Manifest | None:
        """The manifest of the import of a GGUF base. None unless all of its blobs are in the store."""
        key = self.gguf_key(base)
        return whole_manifest(self.store, key) if key else None

    def structure(self, weights: Digest) -> Structure | None:
        """The structure of the base with these weights. None if the store has none that can be read."""
        record = usable_record(self.store, structure_key(weights))
        if record is None:
            return None
        try:
            return structures.from_text(blobs.read(self.store, record.blob).decode())
        except (ValueError, KeyError, TypeError):
            return None

    # -- adapters ------------------------------------------------------------------------------------

    def located(self, adapter: Adapter) -> Adapter | Unknown:
        """The adapter with its folder. Unknown while it is not trained. Raises SourceError."""
        return adapter if adapter.train is None else located(self, adapter, adapter.train)

    def adapter_facts(self, adapter: Adapter) -> AdapterFacts | Unknown:
        """The facts of an adapter, or why they are not known. Raises SourceError if it cannot be used."""
        found = self.located(adapter)
        if isinstance(found, Unknown):
            return found
        adapter, key = found, self.adapter_key(found)
        if key is None:
            return Unknown(NOT_YET)
        base = self._base_that_names(adapter)
        fact = key if base is None else make_key("adapter-places/2", key, base.weights)
        known = self.cache.get("adapter", fact)
        facts = adapter_from_text(known.decode()) if known else self.read_adapter(adapter, key, base, fact)
        if isinstance(facts, Unknown):
            return facts
        return replace(facts, tokenizer=own_tokenizer(self, adapter))

    def _base_that_names(self, adapter: Adapter) -> BaseFacts | None:
        """The base whose names a PEFT adapter gets. None for other adapters, and for an unknown base."""
        from builder.sources.adapters.reading import is_peft

        if not is_peft(adapter):
            return None
        try:
            facts = self.base_facts(self.spec.bases[adapter.base])
        except SourceError:  # the task of the base reports it
            return None
        return facts if isinstance(facts, BaseFacts) else None

    def adapter_key(self, adapter: Adapter) -> Key | None:
        """The identity of an adapter's files, if their digests are known. Raises SourceError."""
        from builder.sources.adapters.reading import adapter_files

        found = self.located(adapter)
        if isinstance(found, Unknown):
            return None
        files = bases.digest_all(adapter_files(found), self.known_digest)
        return make_key("adapter/1", files) if files else None

    def adapter_checked(self, adapter: Adapter) -> bool:
        """Whether the adapter was found finite and fitting its base. False if one of the two is unusable."""
        try:
            key = self._check_key(adapter)
        except BuildError:
            return False
        return key is not None and self.cache.get("adapter-checked", key) is not None

    def note_adapter_checked(self, adapter: Adapter) -> None:
        """Remembers that the adapter is finite and fits its base."""
        if key := self._check_key(adapter):
            self.cache.put("adapter-checked", key, b"1")

    def _check_key(self, adapter: Adapter) -> Key | None:
        key = self.adapter_key(adapter)
        located = self.base_identity(self.spec.bases[adapter.base])
        if key is None or isinstance(located, Unknown):
            return None
        return make_key("adapter-checked/2", key, located.weights)

    def read_adapter(
        self, adapter: Adapter, key: Key, base: BaseFacts | None, fact: Key
    ) -> AdapterFacts | Unknown:
        """Reads and hashes an adapter, and remembers the facts under `fact`. Raises SourceError.

        `key` is the adapter's key. `base` is the base whose names the slices get. None: the adapter's own
        names.
        """
        from builder.sources.adapters.places import placed, places_of
        from builder.sources.adapters.reading import read_adapter
        from builder.sources.adapters.tensors import slice_digests

        info = read_adapter(adapter)
        if base is not None:
            info = placed(info, adapter, places_of(base.structure))
        facts = AdapterFacts(
            Digest(key),
            {block: Key(digest) for block, digest in slice_digests(info, block_of).items()},
            frozenset(name.rpartition(".")[0] for tensor in info.tensors for name in tensor.places),
        )
        if self.adapter_key(adapter) != key:  # replaced during the reading, so the facts may mix two adapters
            return Unknown("is being written")
        self.cache.put("adapter", fact, adapter_to_text(facts).encode())
        return facts

    def calibration(self, variant: Variant) -> Calibration | Unknown:
        """The text that a variant is made for, and how it is read."""
        return calibration_of(variant, self.known_digest)

    def copied_file(self, base: Base, entry: FileEntry) -> bytes:
        """The bytes of a file that targets copy from a base. Raises OSError, SourceError."""
        if isinstance(base.source, GgufSource):
            return blobs.read(self.store, entry.blob)
        return (self.base_directory(base) / entry.name).read_bytes()

    # -- digests -------------------------------------------------------------------------------------

    def known_digest(self, path: Path) -> Digest | None:
        """The digest of a file, if it is remembered or the file is small enough to hash now. Else None."""
        known = self.cache.known(path)
        if known is not None:
            return known
        before, digest = self._hashed.get(path, (None, None))
        if digest is not None and before == identity(path.stat()):
            return digest
        return self.digest(path) if path.stat().st_size <= HASH_AT_ONCE else None

    def digest(self, path: Path, on_progress: Callable[[int], None] | None = None) -> Digest:
        """The digest of a file, hashed if necessary. This process remembers it, however new the file is.

        `on_progress` gets the bytes of each piece. Raises OSError.
        """
        before = identity(path.stat())
        digest = self.cache.digest(path, on_progress)
        self._hashed[path] = (before, digest)
        return digest

    def note_digest(self, path: Path, before: Identity, started: int, digest: Digest) -> None:
        """As `digest`, for what was read of a file since `started`, when it was `before`. Raises OSError."""
        self.cache.note(path, before, started, digest)
        self._hashed[path] = (before, digest)


def structure_key(weights: Digest) -> Key:
    """The key under which the store keeps the structure of a base."""
    return make_key("structure/3", weights)
