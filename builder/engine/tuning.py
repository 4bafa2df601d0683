"""Tunes the scales and biases of a quantized model against the unquantized one. Its codes stay as they are.

This is the training of `mlx_lm.quant.dwq`: KL at temperature 2, Adam, one sequence for each step, scales and
biases in float32. Three things differ. The student is quantized already and keeps its types. The text becomes
tokens as in calibrated rounding: with the chat template, and only tokens of answers count. What is kept is
what has the least KL on sequences that nothing was learned from: that may be the student as it was.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from builder.engine.outcome import OUTCOME, Outcome
from builder.engine.progress import Told
from builder.engine.rounding.points import logprobs, numbers
from builder.engine.rounding.text import Piece, divided
from builder.machine import memory

TEMPERATURE = 2.0  # of mlx_lm.quant.dwq
_LEAVES = ("scales", "biases")
_BYTES = 16  # for each parameter on a CPU: both models in float32, the codes, and a weight's gradient
Parameters = Mapping[str, mx.array]


@dataclass(frozen=True)
class Text:
    """At most `samples` sequences of `length` tokens of a file, which messages call `name`."""

    file: Path
    name: str
    samples: int
    length: int


def tune(
    source: Path, start: Path, out: Path, text: Text, rate: float, seed: int, *, trusted: bool = False
) -> None:
    """Writes to `out` the model of `start` with tuned scales and biases, and the Outcome.

    source: the folder of the unquantized model. trusted: whether its own code may run. Raises
    CalibrationInvalid.
    """
    from mlx_lm import load

    teacher, tokenizer = load(str(source), lazy=True, trust_remote_code=trusted)[:2]
    student = load(str(start), lazy=True, trust_remote_code=trusted)[0]
    used, apart = divided(text.file, text.name, tokenizer, text.samples, text.length)
    random.Random(seed).shuffle(used)
    first = parameters(student)
    if _in_float32(teacher):
        teacher.set_dtype(mx.float32)
        student.set_dtype(mx.float32)
        _unpack(student, first)
    before = divergence(teacher, student, apart)
    made = learned(teacher, student, used, first, rate)
    _give(student, made)
    outcome = Outcome(before, divergence(teacher, student, apart), sum(sum(_counted(each)) for each in apart))
    _write(start, out, made if outcome.better else {})
    (out / OUTCOME).write_text(json.dumps(asdict(outcome)))


def parameters(student: nn.Module) -> dict[str, mx.array]:
    """The scales and biases that are tuned: of affine weights of fewer than 8 bits, as in mlx-lm."""
    found: dict[str, mx.array] = {}
    for path, module in student.named_modules():
        if "scales" in module and module.mode == "affine" and module.bits < 8:
            found |= {f"{path}.{leaf}": module[leaf] for leaf in _LEAVES}
    return found


def learned(
    teacher: Any, student: Any, pieces: Sequence[Piece], first: Parameters, rate: float
) -> dict[str, mx.array]:
    """The scales and biases after one step for each sequence, in the types of `first`."""
    import mlx.optimizers as optimizers

    def loss(now: Parameters, tokens: mx.array, wanted: mx.array, counted: mx.array) -> mx.array:
        _give(student, {name: value.astype(first[name].dtype) for name, value in now.items()})
        return _kl(wanted, student(tokens), counted, TEMPERATURE).sum() / counted.sum()

    optimizer = optimizers.Adam(learning_rate=rate, bias_correction=True)
    now = {name: value.astype(mx.float32) for name, value in first.items()}
    for piece in Told(pieces, desc="training"):
        tokens, counted = _arrays(piece)
        wanted = teacher(tokens)
        mx.eval(wanted)
        lost, slopes = mx.value_and_grad(loss)(now, tokens, wanted, counted)
        now = optimizer.apply_gradients(slopes, now)
        mx.eval(now, optimizer.state)
        Told.loss = numbers(lost[None])[0]
    return {name: value.astype(first[name].dtype) for name, value in now.items()}


def divergence(teacher: Any, student: Any, pieces: Sequence[Piece]) -> float:
    """KL of the teacher to the student: the mean over the tokens that count, in nats."""
    total = count = 0.0
    for piece in Told(pieces, desc="comparison"):
        tokens, counted = _arrays(piece)
        total += numbers(_kl(teacher(tokens), student(tokens), counted, 1.0).sum()[None])[0]
        count += numbers(counted.sum()[None])[0]
    return total / count


def _kl(wanted: mx.array, made: mx.array, counted: mx.array, temperature: float) -> mx.array:
    """What each token that counts loses."""
    theirs, ours = (logprobs(logits.astype(mx.float32) / temperature) for logits in (wanted, made))
    return (mx.exp(theirs) * (theirs - ours)).sum(-1) * counted


def _counted(piece: Piece) -> list[int]:
    """What counts in a sequence. All of it where no answer begins or goes on in it."""
    return piece.counted if any(piece.counted) else [1] * len(piece.tokens)


def _arrays(piece: Piece) -> tuple[mx.array, mx.array]:
    return mx.array([piece.tokens]), mx.array([_counted(piece)], dtype=mx.float32)


def _give(student: nn.Module, made: Parameters) -> None:
    """Gives a student scales and biases, in the type that it computes in."""
    own = dict(tree_flatten(student.parameters()))
    student.update(tree_unflatten([(name, value.astype(own[name].dtype)) for name, value in made.items()]))


def _in_float32(teacher: nn.Module) -> bool:
    """On a CPU mlx multiplies float32 with BLAS, and other types 20 times slower."""
    size = sum(value.size for _, value in tree_flatten(teacher.parameters()))
    return bool(mx.default_device() == mx.Device(mx.cpu) and _BYTES * size < memory())


class _Unpacked:
    """A quantized layer that multiplies with its weight in float32: on a CPU 20 times as fast."""

    _codes: mx.array  # [..., groups, group]. The name keeps it out of the parameters

    def dense(self) -> mx.array:
        return _weight(self._codes, self["scales"], self["biases"])  # type: ignore[index]


class _Linear(_Unpacked, nn.QuantizedLinear):  # type: ignore[misc]
    def __call__(self, x: mx.array) -> mx.array:
        made: mx.array = x @ self.dense().T
        return made + self["bias"] if "bias" in self else made


class _Embedding(_Unpacked, nn.QuantizedEmbedding):  # type: ignore[misc]
    def __call__(self, x: mx.array) -> mx.array:
        return _weight(self._codes[x], self["scales"][x], self["biases"][x])

    def as_linear(self, x: mx.array) -> mx.array:
        return x @ self.dense().T


def _weight(codes: mx.array, scales: mx.array, biases: mx.array) -> mx.array:
    made = codes.astype(scales.dtype) * scales[..., None] + biases[..., None]
    return made.reshape(*made.shape[:-2], -1)


def _unpack(student: nn.Module, tuned: Parameters) -> None:
    """Lets the layers that are tuned multiply in float32. Stacks of experts stay as they are."""
    kinds = {nn.QuantizedLinear: _Linear, nn.QuantizedEmbedding: _Embedding}
    for path, module in student.named_modules():
        if f"{path}.scales" in tuned and (kind := kinds.get(type(module))) is not None:
            scales = module["scales"]
            plain = mx.dequantize(
                module["weight"], mx.ones_like(scales), mx.zeros_like(scales), module.group_size, module.bits
            )
            module._codes = plain.astype(mx.uint8).reshape(*scales.shape, module.group_size)
            module.__class__ = kind


def _write(start: Path, out: Path, made: Parameters) -> None:
    """The files of `start` with other scales and biases. Raises KeyError for one that it does not hold."""
    out.mkdir()
    left = set(made)
    for file in sorted(start.glob("model*.safetensors")):
        tensors: Any = mx.load(str(file))
        given = {name: made.get(name, value) for name, value in tensors.items()}
        left -= given.keys()
        mx.save_safetensors(str(out / file.name), given, metadata={"format": "mlx"})
    if left:
        raise KeyError(f"{start} has no {sorted(left)[0]}")
    (out / "config.json").write_bytes((start / "config.json").read_bytes())
