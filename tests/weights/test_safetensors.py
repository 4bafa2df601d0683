"""Headers of safetensors files: what a hostile one may say, and what a tensor's digest is the digest of."""

from __future__ import annotations

import contextlib
import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from builder.errors import SourceError, SourceInvalid, SourceMissing
from builder.keys import digest_bytes
from builder.weights.safetensors import digest_tensor, read_header
from tests.conftest import ROOT


def write(path: Path, header: object, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(shape: object = (1,), dtype: object = "F32", offsets: object = (0, 4)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    ("header", "says"),
    [
        ({"a": entry(dtype=["F32"])}, 'tensor "a" has unknown dtype'),
        ({"a": entry(dtype={"F32": 1})}, 'tensor "a" has unknown dtype'),
        ({"a": entry(offsets={"start": 0, "end": 4})}, "shape or offsets that are not counts"),
        ({"a": entry(offsets="04")}, "shape or offsets that are not counts"),
        ({"a": entry(offsets=[0.0, 4.0])}, "shape or offsets that are not counts"),
        ({"a": entry(shape=[1] * 65)}, "shape or offsets that are not counts"),
        ({"a": entry(shape=[1 << 63])}, "shape or offsets that are not counts"),
        (b'{"a": {"dtype": "F32", "shape": [' + b"9" * 5000 + b"]}}", "has a header that is not JSON"),
        ({"": entry()}, "names a tensor ''"),
        ({"a\nb": entry()}, r"names a tensor 'a\\nb'"),
        ({"a\ud800": entry()}, r"names a tensor 'a\\ud800'"),
        ({"a" * 1001: entry()}, "names a tensor 'aaa"),
        (b"\xff\xfe", "has a header that is not JSON"),
    ],
)
def test_hostile_headers_are_refused(tmp_path: Path, header: object, says: str) -> None:
    with pytest.raises(SourceInvalid, match=says) as caught:
        read_header(write(tmp_path / "f.safetensors", header, b"1234"), "adapter.a")
    str(caught.value).encode()  # the message can be printed
    assert str(caught.value).startswith(f"adapter.a: {tmp_path / 'f.safetensors'}: ")


def test_what_is_no_file_is_missing(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "nothing"):
        with pytest.raises(SourceMissing):
            read_header(path, "adapter.a")


def test_an_unreadable_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "f.safetensors", {"a": entry()}, b"1234")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(SourceInvalid, match=r"cannot be read \(Permission denied\)"):
        read_header(path, "adapter.a")


def test_the_digest_is_of_the_tensors_bytes_alone(tmp_path: Path) -> None:
    header = {"empty": entry([0, 3], offsets=[0, 0]), "a": entry(), "b": entry(offsets=[4, 8])}
    file = read_header(write(tmp_path / "f.safetensors", header, b"12345678"), "t")
    found = {tensor.name: digest_tensor(file, tensor) for tensor in file.tensors}
    assert found == {"empty": digest_bytes(b""), "a": digest_bytes(b"1234"), "b": digest_bytes(b"5678")}


def test_the_shipped_adapter_is_read_as_the_reference_reads_it() -> None:
    from safetensors import safe_open

    path = ROOT / "example/adapters/phase8/adapters.safetensors"
    ours = {tensor.name: tensor for tensor in read_header(path, "t").tensors}
    data = path.read_bytes()
    with safe_open(path, "np") as theirs:
        assert set(theirs.keys()) == ours.keys()
        for name in theirs.keys():  # noqa: SIM118 (safe_open is no mapping)
            array = theirs.get_tensor(name)
            tensor = ours[name]
            assert (tensor.dtype, tensor.shape) == ("F32", array.shape)
            assert np.array_equal(
                np.frombuffer(data[tensor.start : tensor.end], "<f4").reshape(array.shape), array
            )


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just("F32"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
ENTRIES = st.fixed_dictionaries({"dtype": JSON, "shape": JSON, "data_offsets": JSON}) | JSON


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(header=st.dictionaries(st.text(max_size=4), ENTRIES, max_size=3), data=st.binary(max_size=16))
def test_any_json_raises_nothing_but_source_errors(
    tmp_path: Path, header: dict[str, object], data: bytes
) -> None:
    with contextlib.suppress(SourceError):
        read_header(write(tmp_path / "f.safetensors", header, data), "t")
