"""Writes a folder that mlx-lm loads as one GGUF, tensor by tensor. The same folder gives the same bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from builder.errors import BuildError, SourceError
from builder.gguf import layout, splits
from builder.gguf.architecture import (
    Architecture,
    GgufRefused,
    Tensor,
    architecture,
)
from builder.gguf.formats import Quantize, by_package, data, nbytes
from builder.gguf.layout import Made, kinds_of
from builder.gguf.mixes import MIXES
from builder.gguf.settings import Unwritable
from builder.gguf.vocabulary import Vocabulary, vocabulary
from builder.gguf.weights import Rows, Weight, Weights
from builder.spec.destinations import EXACT
from builder.weights.structure import TensorSpec

WRITER = "gguf/1"  # part of the key: change it when the same folder gives other bytes
_EMBEDDING = "embed_tokens.weight"
_FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "BF16": 32}
_FILE_TYPES |= {name: number for name, (_, number) in MIXES.items()}


class GgufMissing(BuildError):
    """writing a GGUF needs the package `gguf`, which is not installed."""

    exit_code = 2
    hint = 'Install the extra: pip install "modelkiln[gguf]".'


@dataclass(frozen=True)
class Written:
    """A file that is planned: its tensors with their types, and how many bytes they take."""

    architecture: Architecture
    vocabulary: Vocabulary
    tensors: tuple[Made, ...]

    @property
    def nbytes(self) -> int:
        return sum(nbytes(kind, weight) for _, weight, kind in self.tensors)

    @property
    def mix(self) -> dict[str, float]:
        """Type -> its share of all elements, largest first."""
        return layout.mix(TensorSpec(t.name, kind, w.shape) for t, w, kind in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.nbytes / sum(weight.rows * weight.columns for _, weight, _ in self.tensors)


def planned(folder: Path, target: str, wanted: str, *, weighed: bool = False) -> tuple[Written, Weights]:
    """What a GGUF of this folder would be. `weighed`: with an importance matrix.

    Raises GgufRefused, GgufMissing.
    """
    if find_spec("gguf") is None:
        raise GgufMissing()
    try:
        weights = Weights(folder, target)
        rows = next((w.shape[0] for name, w in weights.found.items() if name.endswith(_EMBEDDING)), 0)
        made = architecture(weights.config, [*weights.found], rows)
        tokens = vocabulary(folder, rows)
        plain = [(tensor, weights.found[tensor.source]) for tensor in made.tensors]
        kinds = kinds_of(wanted, plain, made.name, weighed=weighed)
        tensors = tuple((tensor, weight, kinds[tensor.name]) for tensor, weight in plain)
    except (Unwritable, SourceError) as error:
        raise GgufRefused(target=target, what=str(error)) from error
    except (KeyError, TypeError, ValueError) as error:
        raise GgufRefused(target=target, what=f"config.json or the tokenizer lacks {error}") from error
    return Written(made, tokens, tensors), weights


Read = Callable[[Tensor, Weight, str], Iterable[bytes]]  # the bytes of a tensor of some type, in portions


def write(
    file: Path,
    made: Written,
    weights: Rows,
    *,
    target: str,
    wanted: str,
    about: Mapping[str, str],
    step: Callable[[int], None],
    quantize: Quantize = by_package,
) -> None:
    """Writes the file. `about` are general keys such as the licence. `step` gets the bytes of each portion.

    Raises GgufRefused, OSError.
    """

    def read(tensor: Tensor, weight: Weight, kind: str) -> Iterable[bytes]:
        return data(kind, tensor, weight, weights, made.architecture, quantize)

    try:
        write_all(file, made, read, wanted=wanted, about=about, step=step)
    except Unwritable as error:
        raise GgufRefused(target=target, what=str(error)) from error


def write_all(
    file: Path,
    made: Written,
    read: Read,
    *,
    wanted: str,
    about: Mapping[str, str],
    step: Callable[[int], None],
) -> None:
    """Writes the file, with the bytes that `read` gives. Raises OSError, and what `read` raises."""
    from gguf import GGUFWriter

    writer: Any = GGUFWriter(file, made.architecture.name)
    _describe(writer, made, wanted, about)
    try:
        ordered = sorted(made.tensors, key=lambda each: _place(each[0]))
        _write(writer, made, ordered, read, step)
    finally:
        writer.close()


def write_head(file: Path, made: Written, *, wanted: str, files: int) -> None:
    """Writes the first of several files: all but the tensors, which stand in the others. Raises OSError."""
    from gguf import GGUFWriter

    writer: Any = GGUFWriter(file, made.architecture.name)
    _describe(writer, made, wanted, {"quantized_by": "modelkiln"})
    writer.add_uint16(splits.NUMBER, 0)
    writer.add_uint16(splits.COUNT, files)
    writer.add_int32(splits.TENSORS, len(made.tensors) + len(made.architecture.constants))
    try:
        _write(writer, made, (), lambda *_: (), lambda _: None)
    finally:
        writer.close()


def _write(
    writer: Any,
    made: Written,
    tensors: Sequence[Made],
    read: Read,
    step: Callable[[int], None],
) -> None:
    """Everything behind the keys: the table of tensors, and their bytes."""
    import numpy as np
    from gguf import GGMLQuantizationType

    for name, values in made.architecture.constants.items():
        writer.add_tensor_info(name, (len(values),), np.dtype(np.float32), 4 * len(values))
    for tensor, weight, kind in tensors:
        writer.add_tensor_info(
            tensor.name,
            weight.shape,
            np.dtype(np.float32),
            nbytes(kind, weight),
            raw_dtype=GGMLQuantizationType[kind],
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    out = writer.fout[0]
    writer.write_padding(out, out.tell())
    for values in made.architecture.constants.values():
        _put(writer, out, [np.array(values, np.float32).tobytes()], step)
    for made_of in tensors:
        _put(writer, out, read(*made_of), step)


def _put(writer: Any, out: Any, portions: Any, step: Callable[[int], None]) -> None:
    start = out.tell()
    for portion in portions:
        out.write(portion)
        step(len(portion))
    writer.write_padding(out, out.tell() - start)


def _place(tensor: Tensor) -> tuple[int, str]:
    """The embedding first, then block by block, the rest last."""
    parts = tensor.name.split(".")
    if parts[0] == "blk":
        return int(parts[1]), tensor.name
    return (-1 if parts[0] == "token_embd" else 1 << 30), tensor.name


def _describe(writer: Any, made: Written, wanted: str, about: Mapping[str, str]) -> None:
    """All keys. Their order is fixed, and none holds a time."""
    writer.add_type("model")
    for key, text in about.items():
        writer.add_string(f"general.{key}", text)
    writer.add_quantization_version(2)
    kinds = [kind for _, weight, kind in made.tensors if len(weight.shape) > 1]
    usual = Counter(kinds).most_common(1)[0][0] if wanted == EXACT else wanted
    writer.add_file_type(_FILE_TYPES[usual])
    for key, value in made.architecture.settings.items():
        full = f"{made.architecture.name}.{key}"
        match value:
            case bool():
                writer.add_bool(full, value)
            case int():
                writer.add_uint32(full, value)
            case float():
                writer.add_float32(full, value)
            case _:
                writer.add_string(full, value)
    tokens = made.vocabulary
    writer.add_tokenizer_model(tokens.kind)
    writer.add_tokenizer_pre(tokens.pre)
    writer.add_token_list([*tokens.tokens])
    writer.add_token_types([*tokens.types])
    if tokens.scores:
        writer.add_token_scores([*tokens.scores])
    else:
        writer.add_token_merges([*tokens.merges])
    for name, index in tokens.ids.items():
        writer.add_uint32(f"tokenizer.ggml.{name}_token_id", index)
    writer.add_add_bos_token(tokens.add_bos)
    writer.add_add_space_prefix(tokens.prefix)
    if tokens.template is not None:
        writer.add_chat_template(tokens.template)
