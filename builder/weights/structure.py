"""What a base is made of, as mlx-lm lays it out: the facts that the plan needs without loading mlx.

`builder.engine.inspect` makes a Structure once per base, and the store keeps it. Everything here is pure.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod

from builder.spec.types import Quantization

_FIRST_NUMBER = re.compile(r"^(.*?\.\d+)\.")

# Bytes per element of a safetensors dtype code.
ITEM_SIZE: Mapping[str, int] = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1,
    "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}  # fmt: skip
# Elements and bytes of one block of the types of a GGUF that store several numbers together.
PACKED: Mapping[str, tuple[int, int]] = {
    "Q8_0": (32, 34), "Q5_1": (32, 24), "Q5_0": (32, 22), "Q4_1": (32, 20), "Q4_0": (32, 18),
    "Q6_K": (256, 210), "Q5_K": (256, 176), "Q4_K": (256, 144), "Q3_K": (256, 110), "Q2_K": (256, 84),
    "IQ4_NL": (32, 18), "IQ4_XS": (256, 136),
}  # fmt: skip
FLOATING = frozenset({"F64", "F32", "F16", "BF16"})
CODE_OF_DTYPE: Mapping[str, str] = {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}


def block_of(name: str) -> str:
    """The block of a parameter: its path up to the first number, else the path of the module that holds it.

    >>> block_of("model.layers.3.mlp.up_proj.weight"), block_of("model.norm.weight")
    ('model.layers.3', 'model.norm')
    """
    match = _FIRST_NUMBER.match(name)
    if match:
        return match.group(1)
    return name.rsplit(".", 1)[0]


@dataclass(frozen=True)
class TensorSpec:
    """Name, type and shape of one tensor of a shard. The type is a code of safetensors, or a type of GGUF."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        count, size = PACKED.get(self.dtype) or (1, ITEM_SIZE[self.dtype])
        return self.elements // count * size


@dataclass(frozen=True)
class Parameter:
    """One parameter of the loaded model (after `sanitize`). `castable` is what cast_predicate says of it."""

    tensor: TensorSpec
    castable: bool = True


@dataclass(frozen=True)
class Quantizable:
    """A module that has `to_quantized`. `rule` is what the model's own quant_predicate says of the module.

    `recipes` maps each mixed recipe to the bits that mlx_lm.convert gives this path.
    """

    path: str
    rule: bool | Quantization
    recipes: Mapping[str, int]


@dataclass(frozen=True)
class Origin:
    """From which tensors of the checkpoint mlx-lm makes a parameter, and how (`sanitize` of the model).

    sources: their names. A `*` with `count` stands for the numbers 0 to count - 1 (the experts of a layer).
    same: the parameter has the very values of its only source, maybe under another name.
    arithmetic: values change. Otherwise they are only moved: split, stacked, transposed.
    packed: a source holds packed numbers (fp8 ...). Its values exist only after mlx-lm has unpacked them.
    """

    sources: tuple[str, ...]
    count: int = 0
    same: bool = False
    arithmetic: bool = False
    packed: bool = False

    def names(self) -> Iterator[str]:
        """The names of all sources."""
        for source in self.sources:
            if "*" in source:
                yield from (source.replace("*", str(number)) for number in range(self.count))
            else:
                yield source


@dataclass(frozen=True)
class Structure:
    """All parameters in the model's own order, the modules that can be quantized, the paths for an adapter.

    `default_dtype` is the dtype to which mlx_lm.convert casts unless it is told another (None: no cast).
    `quantized` says that the checkpoint itself holds quantized weights. `recipe_errors` says for each mixed
    recipe that mlx-lm cannot apply to this model why not. `origins` has every parameter that is not the
    tensor of the same name, as it is. `dropped` are the tensors that mlx-lm does not load, by the shortest
    prefixes that name nothing else. `tied` is the path of the embedding that is also the output head, or
    empty. `repairs` says by name what mlx-lm would misread of the checkpoint, and what is done about it.
    `changed_before` are the parameters whose numbers mlx-lm changed before it saved this checkpoint.
    """

    model_type: str
    parameters: tuple[Parameter, ...]
    quantizable: tuple[Quantizable, ...]
    adaptable: frozenset[str]
    default_dtype: str | None
    quantized: bool
    recipe_errors: Mapping[str, str]
    repairs: Mapping[str, str] = field(default_factory=dict)
    origins: Mapping[str, Origin] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()
    tied: str = ""
    changed_before: frozenset[str] = frozenset()

    @cached_property
    def blocks(self) -> tuple[str, ...]:
        """Block names in the order in which the model lists its parameters."""
        return tuple(self.by_block)

    @cached_property
    def by_block(self) -> Mapping[str, tuple[Parameter, ...]]:
        groups: dict[str, list[Parameter]] = {}
        for parameter in self.parameters:
            groups.setdefault(block_of(parameter.tensor.name), []).append(parameter)
        return {block: tuple(group) for block, group in groups.items()}

    @cached_property
    def block_nbytes(self) -> Mapping[str, int]:
        """Bytes of each block in the base."""
        return {block: sum(p.tensor.nbytes for p in group) for block, group in self.by_block.items()}

    @cached_property
    def block_elements(self) -> Mapping[str, int]:
        return {block: sum(p.tensor.elements for p in group) for block, group in self.by_block.items()}

    @cached_property
    def layers(self) -> tuple[str, ...]:
        """The blocks that have a number, in order."""
        return tuple(block for block in self.by_block if block.rpartition(".")[2].isdigit())

    @cached_property
    def widths(self) -> tuple[int, ...]:
        """The columns of each matrix of the layers."""
        shapes = (p.tensor.shape for layer in self.layers for p in self.by_block[layer])
        return tuple(shape[-1] for shape in shapes if len(shape) == 2)

    @cached_property
    def width(self) -> int:
        """The width of a hidden state: what most matrices of the layers have as columns. 0 without any."""
        from statistics import mode

        return mode(self.widths) if self.widths else 0

    @cached_property
    def names(self) -> frozenset[str]:
        return frozenset(parameter.tensor.name for parameter in self.parameters)

    @cached_property
    def parameter_count(self) -> int:
        return sum(prod(parameter.tensor.shape) for parameter in self.parameters)

    @cached_property
    def nbytes(self) -> int:
        return sum(parameter.tensor.nbytes for parameter in self.parameters)


def shard_tensors(
    parameters: Iterable[Parameter], dtype: str | None, quantization: Mapping[str, Quantization]
) -> tuple[TensorSpec, ...]:
    """The tensors that one block of one variant holds, sorted by name.

    `dtype` None keeps the dtypes of the base. Quantized paths follow mx.quantize. `weight` is U32 with
    `bits/32` words per element. `scales` has one number per group, in the dtype of the weight for mode affine
    and in U8 for the other modes. Only mode affine has `biases`, with the shape and dtype of `scales`.
    """
    out: list[TensorSpec] = []
    for parameter in parameters:
        tensor = _cast(parameter, dtype)
        path, _, leaf = tensor.name.rpartition(".")
        if leaf == "weight" and path in quantization:
            out += quantized_tensors(tensor, path, quantization[path])
        else:
            out.append(tensor)
    return tuple(sorted(out, key=lambda tensor: tensor.name))


def quantized_tensors(weight: TensorSpec, path: str, how: Quantization) -> list[TensorSpec]:
    """The tensors that mx.quantize makes of one weight [..., in]: weight, scales and, if affine, biases."""
    *lead, width = weight.shape
    groups = (*lead, width // how.group_size)
    scales = weight.dtype if how.mode == "affine" else "U8"
    tensors = [
        TensorSpec(f"{path}.weight", "U32", (*lead, width * how.bits // 32)),
        TensorSpec(f"{path}.scales", scales, groups),
    ]
    if how.mode == "affine":
        tensors.append(TensorSpec(f"{path}.biases", scales, groups))
    return tensors


def _cast(parameter: Parameter, dtype: str | None) -> TensorSpec:
    tensor = parameter.tensor
    if dtype is None or not parameter.castable or tensor.dtype not in FLOATING:
        return tensor
    return TensorSpec(tensor.name, CODE_OF_DTYPE[dtype], tensor.shape)


def to_text(structure: Structure) -> str:
    """A structure as canonical JSON, on one line."""
    return json.dumps(
        {
            "model_type": structure.model_type,
            "parameters": [
                [p.tensor.name, p.tensor.dtype, list(p.tensor.shape), p.castable]
                for p in structure.parameters
            ],
            "quantizable": [
                [
                    q.path,
                    q.rule if isinstance(q.rule, bool) else [q.rule.bits, q.rule.group_size, q.rule.mode],
                    dict(q.recipes),
                ]
                for q in structure.quantizable
            ],
            "adaptable": sorted(structure.adaptable),
            "default_dtype": structure.default_dtype,
            "quantized": structure.quantized,
            "recipe_errors": dict(structure.recipe_errors),
            "repairs": dict(structure.repairs),
            "origins": {
                name: [list(o.sources), o.count, o.same, o.arithmetic, o.packed]
                for name, o in structure.origins.items()
            },
            "dropped": list(structure.dropped),
            "tied": structure.tied,
            "changed_before": sorted(structure.changed_before),
        },
        sort_keys=True,
        separators=(",", ":"),
    )


def from_text(text: str) -> Structure:
    """The structure that `to_text` wrote. Raises ValueError, KeyError or TypeError for other text.

    Text of a version that did not know `origins` is other text: the base is inspected again.
    """
    data = json.loads(text)
    return Structure(
        model_type=data["model_type"],
        parameters=tuple(
            Parameter(TensorSpec(name, dtype, tuple(shape)), castable)
            for name, dtype, shape, castable in data["parameters"]
        ),
        quantizable=tuple(
            Quantizable(path, rule if isinstance(rule, bool) else Quantization(*rule), recipes)
            for path, rule, recipes in data["quantizable"]
        ),
        adaptable=frozenset(data["adaptable"]),
        default_dtype=data["default_dtype"],
        quantized=data["quantized"],
        recipe_errors=data["recipe_errors"],
        repairs=data["repairs"],
        origins={name: Origin(tuple(sources), *rest) for name, (sources, *rest) in data["origins"].items()},
        dropped=tuple(data["dropped"]),
        tied=data["tied"],
        changed_before=frozenset(data["changed_before"]),
    )
