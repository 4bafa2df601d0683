"""What artifacts.toml says of quantizers that need a text, and of files for llama.cpp, as frozen values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

RECIPES = ("mixed_2_6", "mixed_3_4", "mixed_3_6", "mixed_4_6")

# mode -> (allowed bits, allowed group sizes, default bits, default group size): what mx.quantize takes.
MODES: Mapping[str, tuple[tuple[int, ...], tuple[int, ...], int, int]] = {
    "affine": ((2, 3, 4, 5, 6, 8), (32, 64, 128), 4, 64),
    "mxfp4": ((4,), (32,), 4, 32),
    "nvfp4": ((4,), (16,), 4, 16),
    "mxfp8": ((8,), (32,), 8, 32),
}
# The learned quantizers, and the settings that each of them reads (builder.engine.quantizer.arguments).
METHOD_SETTINGS: Mapping[str, frozenset[str]] = {
    "dwq": frozenset({"seed", "samples", "sequence_length", "learning_rate"}),
    "awq": frozenset({"seed", "samples", "sequence_length"}),
    "gptq": frozenset({"seed", "samples", "sequence_length"}),
    "dynamic": frozenset({"seed", "samples", "sequence_length", "high_bits", "target_bpw"}),
}
METHODS = tuple(METHOD_SETTINGS)
TUNES = "dwq"  # the method that can start from a quantized variant
SMALLEST = "smallest"  # a target that searches its size
NEAREST = "nearest"
ROUNDINGS = ("calibrated", NEAREST)  # how a target that asks for a size, or keeps some experts, is rounded
CRITERIA = ("reap", "frequency", "ean")  # by which the experts to keep are chosen


@dataclass(frozen=True)
class Learned:
    """A learned quantizer (mlx_lm.quant): a whole-model step that needs a model on disk and a text.

    `source` is the variant whose directory it reads. It uses at most `samples` pieces of the text, of
    `sequence_length` tokens each. `high_bits` and `target_bpw` (bits per weight) are settings of method
    dynamic. `learning_rate` is a setting of method dwq, and so is `start`: the quantized variant whose codes
    are kept. Without it the method rounds `source` itself.
    """

    method: str
    source: str
    calibration: Path
    seed: int = 0
    samples: int = 128
    sequence_length: int = 512
    learning_rate: float = 1e-6
    high_bits: int = 8
    target_bpw: float = 5.0
    start: str | None = None


@dataclass(frozen=True)
class Goal:
    """How large a target may be: bits per weight of the whole model, or bytes of its shards.

    With neither it is `smallest`: the fewest bytes with which the target meets what its model requires.
    """

    bits_per_weight: float | None = None
    nbytes: int | None = None

    @property
    def smallest(self) -> bool:
        return self.bits_per_weight is None and self.nbytes is None

    def budget(self, parameters: int) -> int:
        """Bytes for a model with so many parameters. Not for `smallest`."""
        if self.nbytes is not None:
            return self.nbytes
        assert self.bits_per_weight is not None
        return int(self.bits_per_weight * parameters / 8)

    def __str__(self) -> str:
        if self.smallest:
            return SMALLEST
        return f"{self.nbytes}B" if self.bits_per_weight is None else f"{self.bits_per_weight:g}bpw"


@dataclass(frozen=True)
class Calibrated:
    """Rounding for the inputs that a text causes (`builder.engine.rounding`), in one pass, block by block.

    It uses at most `samples` pieces of the text, of `sequence_length` tokens each. With `nearest` the text
    only chooses the bits of each weight, and blocks are rounded to nearest, as in any pass.
    """

    calibration: Path
    samples: int = 32
    sequence_length: int = 256
    nearest: bool = False


@dataclass(frozen=True)
class GgufKind:
    """Files for llama.cpp with weights of this type. `of`: for "exact", the variant with these weights.

    `weighed`: the text of the importance matrix that K-quants are made with.
    """

    type: str
    of: str | None = None
    weighed: Calibrated | None = None


@dataclass(frozen=True)
class Experts:
    """Which share of the experts of each layer a variant keeps, and by what criterion they are chosen.

    What experts do for a text is measured with the settings of `Calibrated`. With `choices` the share is
    searched: `share` is not used then.
    """

    share: float
    criterion: str = CRITERIA[0]
    choices: tuple[float, ...] = ()

    def __str__(self) -> str:
        shares = " or ".join(f"{share:g}" for share in self.choices or (self.share,))
        return f"{shares} of the experts by {self.criterion}"
