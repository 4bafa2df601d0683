"""An importance matrix as a GGUF, in the way that llama.cpp's own programs write and read it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

FORMAT = 1  # part of the key: change it when the same sums give another file
_SUMS, _COUNTS = ".in_sum2", ".counts"
Entry = tuple[str, "Array", "Array"]  # tensor, sums of squares [matrices, columns], counts [matrices]


def write(file: Path, entries: Iterable[Entry], text: str, sequences: int, length: int) -> None:
    """Writes the file. `text` names what the sums are of. Raises OSError."""
    import numpy as np
    from gguf import GGUFWriter

    writer: Any = GGUFWriter(file, "")
    writer.kv_data[0].pop("general.architecture", None)
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", [text])
    writer.add_uint32("imatrix.chunk_count", sequences)
    writer.add_uint32("imatrix.chunk_size", length)
    for name, sums, counts in sorted(entries, key=lambda entry: entry[0]):
        writer.add_tensor(name + _SUMS, np.ascontiguousarray(sums, np.float32))
        writer.add_tensor(name + _COUNTS, np.ascontiguousarray(counts, np.float32).reshape(-1, 1))
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def read(file: Path) -> Mapping[str, Array]:
    """Tensor -> how large its inputs are in the mean, squared, float32 [matrices, columns].

    A matrix that was given nothing has 1 everywhere, as llama.cpp takes it.
    """
    import numpy as np
    from gguf import GGUFReader

    tensors = {each.name: each.data for each in GGUFReader(file).tensors}
    made: dict[str, Array] = {}
    for name, sums in tensors.items():
        if name.endswith(_SUMS):
            plain = name.removesuffix(_SUMS)
            counts = tensors[plain + _COUNTS].reshape(-1, 1)
            means = sums.reshape(len(counts), -1) / np.maximum(counts, 1)
            made[plain] = np.where(counts > 0, means, np.float32(1)).astype(np.float32)
    return made
