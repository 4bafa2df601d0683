"""Records and manifests: what is not exactly what was written is not there."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from builder.keys import Digest, Key, make_key
from builder.store import records, seals
from builder.store.format import open_store
from builder.store.layout import Store
from builder.store.types import Blob, FileEntry, Manifest, Record, manifest_to_text, record_to_text

KEY = make_key("test", 1)
BLOB = Blob(Digest("ab" * 32), 12)
RECORD = Record(KEY, "block", BLOB, {"mlx": "0.32.4", "seconds": 1.5})
MANIFEST = Manifest(
    KEY, "target", "m_5bit", "2025-01-01T00:00:00Z", (FileEntry("config.json", BLOB),), {"base": "x"}
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "store")


def test_what_was_written_is_read(store: Store) -> None:
    assert records.read(store, KEY) is None
    assert records.read_manifest(store, KEY) is None
    records.write(store, RECORD)
    records.write_manifest(store, MANIFEST)
    assert records.read(store, KEY) == RECORD
    assert records.read_manifest(store, KEY) == MANIFEST
    assert list(records.manifests(store)) == [MANIFEST]
    assert records.manifest_keys(store) == [KEY]
    assert records.record_keys(store) == [KEY]


def test_writing_again_replaces(store: Store) -> None:
    records.write(store, RECORD)
    other = Record(KEY, "block", Blob(Digest("cd" * 32), 3))
    records.write(store, other)
    assert records.read(store, KEY) == other


@pytest.mark.parametrize("which", ["record", "manifest"])
def test_every_flipped_byte_is_seen(store: Store, which: str) -> None:
    records.write(store, RECORD)
    records.write_manifest(store, MANIFEST)
    path = records.path(store, KEY) if which == "record" else records.manifest_path(store, KEY)
    good = path.read_bytes()
    for position in range(len(good)):
        path.write_bytes(good[:position] + bytes([good[position] ^ 1]) + good[position + 1 :])
        assert (records.read(store, KEY) if which == "record" else records.read_manifest(store, KEY)) is None
    for length in range(len(good)):
        path.write_bytes(good[:length])
        assert (records.read(store, KEY) if which == "record" else records.read_manifest(store, KEY)) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        "[" * 100_000 + "\n",
        "null\n",
        '{"format": 2}\n',
        record_to_text(Record(make_key("test", 2), "block", BLOB)),
        record_to_text(Record(KEY, "block", Blob(Digest("../../etc/passwd"), 1))),
        record_to_text(Record(KEY, "block", Blob(BLOB.digest, -1))),
    ],
    ids=["empty", "blank", "deep", "null", "format", "other key", "path", "negative"],
)
def test_sound_text_that_is_no_sound_record_is_not_there(store: Store, text: str) -> None:
    seals.write(store, records.path(store, KEY), text)
    assert records.read(store, KEY) is None


def test_a_manifest_of_another_key_or_format_is_not_there(store: Store) -> None:
    other = make_key("test", 2)
    seals.write(store, records.manifest_path(store, other), manifest_to_text(MANIFEST))
    assert records.read_manifest(store, other) is None
    text = manifest_to_text(MANIFEST).replace("format = 1", "format = 9")
    seals.write(store, records.manifest_path(store, KEY), text)
    assert records.read_manifest(store, KEY) is None
    assert list(records.manifests(store)) == []


def test_only_a_key_is_a_path(store: Store) -> None:
    with pytest.raises(ValueError, match="not a key"):
        records.read(store, Key("../version"))
    with pytest.raises(ValueError, match="not a key"):
        records.read_manifest(store, Key(""))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=300), st.binary(max_size=80))
def test_checked_text_survives_and_nothing_else_does(store: Store, text: str, noise: bytes) -> None:
    assert seals.unsealed(seals.sealed(text)) == text
    assert seals.unsealed(noise) is None
    path = store.root / "evals" / "x"
    seals.write(store, path, text)
    assert seals.read(path) == text
