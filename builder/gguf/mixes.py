"""Which type each weight gets in a file of K-quants: the mixtures of llama.cpp. Pure.

A file of the type Q4_K_M is not Q4_K throughout. Weights that suffer more get more bits, and a weight whose
width is not a multiple of 256 gets a type with blocks of 32. Tests compare these rules with llama.cpp's own
quantizer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# The type of most weights of a file, and the number that llama.cpp knows such a file by.
MIXES: Mapping[str, tuple[str, int]] = {
    "Q6_K": ("Q6_K", 18),
    "Q5_K_M": ("Q5_K", 17),
    "Q5_K_S": ("Q5_K", 16),
    "Q4_K_M": ("Q4_K", 15),
    "Q4_K_S": ("Q4_K", 14),
    "IQ4_NL": ("IQ4_NL", 25),
    "IQ4_XS": ("IQ4_XS", 30),
    "Q3_K_L": ("Q3_K", 13),
    "Q3_K_M": ("Q3_K", 12),
    "Q3_K_S": ("Q3_K", 11),
    "Q2_K": ("Q2_K", 10),
}
# What takes the place of a type with blocks of 256 where a width is not a multiple of 256.
SMALLER: Mapping[str, str] = {
    "Q2_K": "Q4_0",
    "Q3_K": "Q4_0",
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
    "IQ4_XS": "IQ4_NL",
}
LARGE, SMALL = 256, 32  # elements of a block

_VALUES = ("attn_v", "attn_qkv")  # they suffer most
_EIGHT = ("Q2_K", "Q3_K_S", "Q3_K_M", "Q4_K_S", "Q4_K_M", "IQ4_NL", "IQ4_XS")
_OUTPUT = {"Q2_K": "Q3_K", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K"}


@dataclass(frozen=True)
class Model:
    """What the rules ask of a model. `sharing`: how many heads share a key. `tied`: it has no own head."""

    layers: int
    experts: int
    sharing: int
    is_70b: bool
    tied: bool


def model_of(architecture: str, shapes: Mapping[str, tuple[int, ...]]) -> Model:
    """What the rules ask of a model with tensors of these names and shapes."""
    layers = 1 + max((int(name.split(".")[1]) for name in shapes if name.startswith("blk.")), default=-1)
    experts = next((shape[0] for name, shape in shapes.items() if name.endswith("_exps.weight")), 0)
    sharing = _sharing(shapes)
    return Model(
        layers,
        experts,
        sharing,
        architecture == "llama" and layers == 80 and sharing > 1,
        "output.weight" not in shapes,
    )


def _sharing(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """How many heads share a key: heads of queries and of keys have the same width."""
    if (together := shapes.get("blk.0.attn_qkv.weight")) is not None:
        queries = shapes["blk.0.attn_output.weight"][-1]
        return queries // ((together[0] - queries) // 2)
    return shapes["blk.0.attn_q.weight"][0] // shapes["blk.0.attn_k.weight"][0]


def mixed(wanted: str, weights: Sequence[tuple[str, int]], model: Model, *, weighed: bool) -> dict[str, str]:
    """The type of each weight: (name, columns) -> type, for all that are quantized at all.

    `weighed`: an importance matrix is given.
    """
    values = sum(_part(name) in _VALUES for name, _ in weights)
    made = {}
    for name, columns in weights:
        if _part(name) == "output" or (model.tied and _part(name) == "token_embd"):
            made[name] = _head(wanted, columns)
        else:
            made[name] = _fitting(_kind(wanted, name, values, model, weighed), columns)
    return made


def _part(name: str) -> str:
    """attn_v of blk.3.attn_v.weight. Experts are called as the layer that they stand for."""
    return name.removesuffix(".weight").rpartition(".")[2].removesuffix("_exps")


def _head(wanted: str, columns: int) -> str:
    usual = MIXES[wanted][0]
    width = SMALL if usual == "IQ4_NL" else LARGE
    return _fitting("Q8_0" if columns % width else "Q6_K", columns)


def _fitting(kind: str, columns: int) -> str:
    if kind in SMALLER and columns % LARGE:
        kind = SMALLER[kind]
    return "F16" if columns % SMALL else kind


def _kind(wanted: str, name: str, values: int, model: Model, weighed: bool) -> str:
    usual, part = MIXES[wanted][0], _part(name)
    at = int(name.split(".")[1]) if name.startswith("blk.") else 0
    if part in _VALUES:
        return _value(wanted, usual, at, values, model)
    if part == "attn_k" and model.experts == 8:
        return "Q8_0"
    if part == "ffn_down":
        return _down(wanted, usual, at, model.layers, weighed)
    if part == "attn_output":
        if model.experts == 8:
            return "Q5_K" if wanted in _EIGHT else usual
        return _OUTPUT.get(wanted, usual)
    return usual


def _value(wanted: str, usual: str, at: int, count: int, model: Model) -> str:
    kind = usual
    match wanted:
        case "Q2_K":
            kind = "Q4_K" if model.sharing >= 4 else "Q3_K"
        case "Q3_K_M":
            kind = "Q5_K" if at < 2 else "Q4_K"
        case "Q3_K_L":
            kind = "Q5_K"
        case "IQ4_NL" | "IQ4_XS" if model.sharing >= 4:
            kind = "Q5_K"
        case "Q4_K_M" | "Q5_K_M" if _gets_more(at, count):
            kind = "Q6_K"
        case "Q4_K_S" if at < 4:
            kind = "Q5_K"
    if model.is_70b and kind in ("Q3_K", "Q4_K"):
        kind = "Q5_K"
    return "Q8_0" if model.experts == 8 else kind


def _down(wanted: str, usual: str, at: int, layers: int, weighed: bool) -> str:
    match wanted:
        case "Q2_K":
            return "Q3_K"
        case "Q3_K_M":
            return "Q5_K" if at < layers // 16 else "Q4_K"
        case "Q3_K_L":
            return "Q5_K"
        case "Q4_K_M" | "Q5_K_M" if _gets_more(at, layers):
            return "Q6_K"
        case "IQ4_NL" | "IQ4_XS" if at < layers // 8 and not weighed:
            return "Q5_K"
        case "Q4_K_S" if at < layers // 8:
            return "Q5_K"
    return usual


def _gets_more(at: int, count: int) -> bool:
    """The first and the last eighth, and every third layer between them."""
    return at < count // 8 or at >= 7 * count // 8 or (at - count // 8) % 3 == 2
