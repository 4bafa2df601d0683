"""From which tensors of the checkpoint mlx-lm makes each parameter, and how.

The model's own `sanitize` is run on the lazy tensors, and the graph of what it made is read. So this is right
for every architecture of mlx-lm without a table, and nothing is evaluated. mlx.core.export_to_dot writes the
graph. It has one line for each operation (`{ 12 [label ="Add", shape=rectangle]; }`), one line for each array
that goes into an operation (`"A" -> 12`) and one for each that comes out (`12 -> "B"`). An operation has the
same number in every graph as long as it lives.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import mlx.core as mx

from builder.engine.sanitizing import Tensors
from builder.weights.structure import Origin

_LINE = re.compile(r'\{ (\d+) \[label ="([^"]*)"|"([^"]*)" -> (\d+)|(\d+) -> "([^"]*)"')
# Operations that move values and do not change them.
_MOVES = frozenset({
    "Load", "Arange", "AsStrided", "AsType", "Broadcast", "Concatenate", "Contiguous", "Copy", "DynamicSlice",
    "ExpandDims", "Flatten", "Full", "Gather", "Reshape", "Slice", "Split", "Squeeze", "StopGradient",
    "Transpose", "Unflatten", "View",
})  # fmt: skip
_JOINS = frozenset({"Concatenate", "ExpandDims"})  # what mx.stack does
_AT_ONCE = 1000  # arrays in one graph: a function of mlx takes at most 1,024 named arguments
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


@dataclass
class Trace:
    """What `sanitize` was given and what it made, by name. Pass `around` to `load_base`."""

    given: Tensors = field(default_factory=dict)
    made: Tensors = field(default_factory=dict)
    sanitize: Callable[[Tensors], Tensors] = dict

    def around(self, sanitize: Callable[[Tensors], Tensors], weights: Tensors) -> Tensors:
        # Other array objects of the same values: `sanitize` may change an array in place (param *= 2).
        self.given = {name: array.astype(array.dtype) for name, array in weights.items()}
        self.sanitize, self.made = sanitize, dict(sanitize(weights))
        return self.made

    def origins(self) -> dict[str, Origin]:
        """The origin of each parameter that is not the tensor of the same name, as it is."""
        producers = Graph.of(self.given).producers
        names = {producers[name]: name for name in self.given if name in producers}
        graph = Graph.of(self.made)
        found = {}
        for name in self.made:
            producer = graph.producers.get(name)
            if producer is None or names.get(producer) == name:
                continue
            sources, operations = graph.behind(producer, names)
            if sources:
                found[name] = self._origin(name, sources, operations, producer in names)
        return found

    def joined(self) -> dict[str, tuple[str, ...]]:
        """Parameter -> the tensors whose bytes, one after the other, are the bytes of the parameter.

        That is one tensor as it is, or a stack of tensors along a first axis. A stack along another axis has
        another shape, unless sizes are equal. Parameters for which this is not certain are left out.
        """
        producers = Graph.of(self.given).producers
        names = {producers[name]: name for name in self.given if name in producers}
        graph = Graph.of(self.made)
        found = {}
        for name, made in self.made.items():
            producer = graph.producers.get(name)
            if producer is None:
                continue
            sources, operations = graph.behind(producer, names)
            tensors = [self.given[source] for source in sources]
            if any(tensor.dtype != made.dtype for tensor in tensors):
                continue
            shapes = {tensor.shape for tensor in tensors}
            one = producer in names and shapes == {made.shape}
            stack = operations <= _JOINS and {(len(sources), *shape) for shape in shapes} == {made.shape}
            if one or (stack and len(sources) not in made.shape[1:]):
                found[name] = tuple(sources)
        return found

    def dropped(self, origins: Mapping[str, Origin]) -> frozenset[str]:
        """The tensors of the checkpoint that no parameter is made from."""
        used = {source for origin in origins.values() for source in origin.names()}
        return frozenset(self.given) - used - (self.made.keys() - origins.keys())

    def _origin(self, name: str, sources: list[str], operations: set[str], same: bool) -> Origin:
        packed = [s for s in sources if not mx.issubdtype(self.given[s].dtype, mx.floating)]
        shape = self.made[name].shape
        unpacked = len(packed) == 1 and self.given[packed[0]].shape == shape
        if unpacked:  # numbers of 8 bits and their scales: the values of the tensor, as they are meant
            return Origin(tuple(packed), same=True, packed=True)
        compact, count = numbered(sources)
        return Origin(compact, count, same, not operations <= _MOVES, bool(packed))


@dataclass
class Graph:
    """Operations and the arrays between them. `producers`: the operation behind each named array."""

    producers: dict[str, str]
    labels: dict[str, str]
    inputs: dict[str, list[str]]  # operation -> the operations whose arrays it takes

    @staticmethod
    def of(named: Mapping[str, mx.array]) -> Graph:
        """The graph behind arrays. Nothing is evaluated."""
        graph, names = Graph({}, {}, {}), list(named)
        for start in range(0, len(names), _AT_ONCE):
            graph._add({name: named[name] for name in names[start : start + _AT_ONCE]})
        # Of two objects that are one array, the graph has a label for the last one only.
        for name in named.keys() - graph.producers.keys():
            graph._add({name: named[name]})
        return graph

    def _add(self, named: Mapping[str, mx.array]) -> None:
        short = {f"array{number}": array for number, array in enumerate(named.values())}
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "graph.dot"
            mx.export_to_dot(str(file), *named.values(), **short)
            labels, takes, gives = _read(file.read_text().splitlines())
        self.labels |= labels
        for operation, arrays in takes.items():
            self.inputs[operation] = [gives[array] for array in arrays if array in gives]
        last = {id(array): label for label, array in short.items()}
        for name, array in named.items():
            if (producer := gives.get(last[id(array)])) is not None:
                self.producers[name] = producer

    def behind(self, operation: str, stops: Mapping[str, str]) -> tuple[list[str], set[str]]:
        """The `stops` that an operation goes back to, in order, and the kinds of operations on the way."""
        found: dict[str, None] = {}
        kinds: set[str] = set()
        seen: set[str] = set()
        waiting = [operation]
        while waiting:
            this = waiting.pop()
            if this in stops:
                found[stops[this]] = None
            elif this not in seen:
                seen.add(this)
                kinds.add(self.labels.get(this, ""))
                waiting += reversed(self.inputs.get(this, []))
        return list(found), kinds


def _read(lines: Iterable[str]) -> tuple[dict[str, str], dict[str, list[str]], dict[str, str]]:
    """Operation -> kind, operation -> arrays that it takes, array -> operation that gives it."""
    labels: dict[str, str] = {}
    takes: dict[str, list[str]] = {}
    gives: dict[str, str] = {}
    for line in lines:
        match = _LINE.search(line)
        if match is None:
            continue
        made, kind, taken, taker, giver, given = match.groups()
        if made:
            labels[made] = kind
        elif taker:
            takes.setdefault(taker, []).append(taken)
        else:
            gives[given] = giver
    return labels, takes, gives


def numbered(names: list[str]) -> tuple[tuple[str, ...], int]:
    """Names that differ in one number, from 0 on, as one name with `*`, and how many. Others as they are.

    >>> numbered(["a.0.w", "a.1.w", "a.2.w"])
    (('a.*.w',), 3)
    """
    parts = [(_NUMBER.split(name), _NUMBER.findall(name)) for name in names]
    first = parts[0]
    if len(names) > 2 and all(len(p[1]) == len(first[1]) and p[0] == first[0] for p in parts):
        varying = [i for i in range(len(first[1])) if len({p[1][i] for p in parts}) > 1]
        if len(varying) == 1 and {p[1][varying[0]] for p in parts} == {str(n) for n in range(len(names))}:
            numbers = [*first[1], ""]
            numbers[varying[0]] = "*"
            return ("".join(a + b for a, b in zip(first[0], numbers, strict=True)),), len(names)
    return tuple(names), 0


def shortest(dropped: frozenset[str], kept: Iterable[str]) -> tuple[str, ...]:
    """The shortest prefixes, up to a dot, that name all of `dropped` and nothing of `kept`."""
    used = {prefix for name in kept for prefix in _prefixes(name)}
    return tuple(sorted({next(p for p in _prefixes(name) if p not in used or p == name) for name in dropped}))


def _prefixes(name: str) -> Iterator[str]:
    parts = name.split(".")
    yield from (".".join(parts[: number + 1]) for number in range(len(parts)))
