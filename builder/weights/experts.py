"""Which experts of a mixture a model keeps: what was measured of them, and what is left of each tensor. Pure.

`builder.engine.routing` measures. Every tensor that has a place for each expert loses the same places: those
of the stacks of experts, the router's weight, its bias, its correction. A router may have more places than
there are experts (longcat's identity experts): they stand behind the experts, and stay.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property

from builder.keys import Digest, Key, make_key
from builder.weights.structure import Parameter, Structure, block_of


@dataclass(frozen=True)
class Experts:
    """The experts of one layer, as a text used them: how often each was chosen, and two sums over that.

    `norms`: of the norm of what it returned. `weighted`: of that norm times the router's weight.
    """

    chosen: tuple[int, ...]
    norms: tuple[float, ...]
    weighted: tuple[float, ...]

    def scores(self, criterion: str) -> list[tuple[float, int]]:
        """By what experts are compared: the criterion, and among equals how often they were chosen."""
        if criterion == "frequency":
            return [(float(times), times) for times in self.chosen]
        if criterion == "ean":
            return list(zip(self.norms, self.chosen, strict=True))
        both = zip(self.weighted, self.chosen, strict=True)
        return [(total / max(1, times), times) for total, times in both]

    def best(self, keep: int, criterion: str, groups: int = 1) -> tuple[int, ...]:
        """The experts that stay, the same number of each group of neighbours."""
        scores, size = self.scores(criterion), len(self.chosen) // groups
        kept: list[int] = []
        for first in range(0, len(scores), size):
            order = sorted(range(first, first + size), key=lambda at: (*scores[at], -at), reverse=True)
            kept += order[: keep // groups]
        return tuple(sorted(kept))


@dataclass(frozen=True)
class Routing:
    """The experts of a model, and what a text measured of them.

    `setting`: where config.json has their number, `count`. A token goes to `top_k` of them. With `groups` the
    router first chooses `open_groups` groups of neighbours. `places`: the tensors with a place for each
    expert, and along which axis. `layers`: by block. `tenth`: the nats for each token that the model loses
    without a tenth of its experts, on `held` other tokens. None where that was not measured.
    """

    setting: tuple[str, ...]
    count: int
    top_k: int
    groups: int
    open_groups: int
    places: Mapping[str, int]
    layers: Mapping[str, Experts]
    tokens: int
    tenth: float | None = None
    held: int = 0

    def to_text(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self), sort_keys=True)

    def kept(self, keep: int, criterion: str) -> dict[str, tuple[int, ...]]:
        """Block -> the experts that stay."""
        return {block: each.best(keep, criterion, self.groups) for block, each in self.layers.items()}


def from_text(text: str) -> Routing:
    """What `to_text` wrote. Raises ValueError, TypeError, KeyError."""
    data = json.loads(text)
    layers = {
        block: Experts(*(tuple(each[name]) for name in ("chosen", "norms", "weighted")))
        for block, each in data.pop("layers").items()
    }
    return Routing(**{**data, "setting": tuple(data["setting"])}, layers=layers)


@dataclass(frozen=True)
class Pruned:
    """A base without some of its experts.

    `kept`: those that stay, by block. `count`: how many there are without pruning. `whole`: the structure
    without pruning. `measured`: the key under which was measured what the choice was made from.
    """

    setting: tuple[str, ...]
    count: int
    kept: Mapping[str, tuple[int, ...]]
    places: Mapping[str, int]
    whole: Structure
    measured: Key

    @property
    def keep(self) -> int:
        """How many experts each layer keeps."""
        return len(next(iter(self.kept.values())))

    def digest(self, block: str) -> Digest | None:
        """What is cut out of a block. None for a block that loses nothing."""
        if block not in self.kept:
            return None
        return Digest(make_key("experts/1", [self.kept[block], self._cuts.get(block, [])]))

    @cached_property
    def _cuts(self) -> Mapping[str, list[list[str | int]]]:
        """Block -> its tensors that are cut, and along which axis."""
        found: dict[str, list[list[str | int]]] = {}
        for name in sorted(self.places):
            found.setdefault(block_of(name), []).append([name, self.places[name]])
        return found

    def indices(self, name: str, size: int) -> tuple[int, ...] | None:
        """Which places of a tensor stay, of `size` along its axis. None for a tensor that stays as it is."""
        if name not in self.places:
            return None
        return (*self.kept[block_of(name)], *range(self.count, size))

    @cached_property
    def structure(self) -> Structure:
        """What is left."""
        return replace(self.whole, parameters=tuple(self._cut(each) for each in self.whole.parameters))

    def _cut(self, parameter: Parameter) -> Parameter:
        tensor = parameter.tensor
        if (axis := self.places.get(tensor.name)) is None:
            return parameter
        shape = self.shape(tensor.shape, axis)
        return replace(parameter, tensor=replace(tensor, shape=shape))

    def shape(self, shape: Sequence[int], axis: int) -> tuple[int, ...]:
        """The shape of a tensor that loses experts along an axis."""
        left = shape[axis] - self.count + self.keep
        return (*shape[:axis], left, *shape[axis + 1 :])
