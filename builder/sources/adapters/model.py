"""What a model of mlx-lm has, and from which tensors of its checkpoint: the places for an adapter. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from builder.weights import lora
from builder.weights.structure import Origin, Structure


@dataclass(frozen=True)
class Places:
    """What a model has: the paths that can carry an adapter, and the shapes of its parameters by name.

    The rest is as in Structure. `family`: the model type.
    """

    adaptable: Collection[str]
    shapes: Mapping[str, tuple[int, ...]]
    origins: Mapping[str, Origin] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()
    tied: str = ""
    family: str = ""
    changed_before: frozenset[str] = frozenset()

    def fits(self, name: str) -> bool:
        """Whether a tensor of this name has a place in mlx-lm's model."""
        path, _, part = name.rpartition(".")
        return path in self.adaptable if part in lora.PARTS else name in self.shapes

    def experts(self, path: str) -> int:
        """How many experts the weight of a path stacks. 0 if the weight is not a stack."""
        shape = self.shapes.get(f"{path}.weight", ())
        return shape[0] if len(shape) == 3 else 0

    @cached_property
    def flows(self) -> Mapping[str, tuple[str, ...]]:
        """Tensor of the checkpoint -> the parameters that mlx-lm makes from it, unless it is one itself."""
        found: dict[str, tuple[str, ...]] = {}
        for name, origin in self.origins.items():
            for source in origin.names():
                found[source] = (*found.get(source, ()), name)
        for source in found:
            if source in self.shapes and source not in self.origins:
                found[source] = (source, *found[source])
        return found

    def made_from(self, tensor: str) -> tuple[str, ...]:
        """The parameters that mlx-lm makes from a tensor of the checkpoint. Empty for an unknown tensor."""
        if tensor in self.flows:
            return self.flows[tensor]
        return (tensor,) if tensor in self.shapes and tensor not in self.origins else ()

    def as_it_is(self, tensor: str, made: tuple[str, ...]) -> bool:
        """Whether the only parameter made from a tensor has the tensor's values, maybe under another name."""
        return len(made) == 1 and (made[0] not in self.origins or self.origins[made[0]].same)

    def is_dropped(self, name: str) -> bool:
        """Whether mlx-lm does not load what the checkpoint has under a name."""
        return any(name == prefix or name.startswith(f"{prefix}.") for prefix in self.dropped)


def places_of(structure: Structure) -> Places:
    """The places of a base, from its structure."""
    return Places(
        structure.adaptable,
        {p.tensor.name: p.tensor.shape for p in structure.parameters},
        structure.origins,
        structure.dropped,
        structure.tied,
        structure.model_type,
        structure.changed_before,
    )
