"""`seeds = [0, 1, 2]` in [adapter.NAME.train] stands for several adapters, and for several models of each.

The tables are copied before anything else looks at them. So an adapter of one seed is like any other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol, TypeVar

from builder.console.words import quoted
from builder.spec.problems import Problems
from builder.spec.shape import Declared, Values
from builder.spec.types import Spec

SEED_OF = "seed of"  # the model that a model of one seed was declared as. No key of a file has a space


def with_seeds(declared: Declared, problems: Problems) -> Declared:
    """The declaration with one adapter, and one model of each that uses it, for each seed."""
    adapters: dict[str, Values] = {}
    copies: dict[str, Mapping[str, int]] = {}
    for name, values in declared["adapter"].items():
        seeds = _seeds(values, problems)
        if not seeds:
            adapters[name] = values
            continue
        copies[name] = {f"{name}-seed{seed}": seed for seed in seeds}
        for copy, seed in copies[name].items():
            adapters[copy] = _of_seed(values, seed)
            _check_free("adapter", copy, declared["adapter"], values, problems)
    if not copies:
        return declared
    models: dict[str, Values] = {}
    for name, values in declared["model"].items():
        worn = values.get("adapter")
        if worn not in copies:
            models[name] = values
            continue
        for copy, seed in copies[worn].items():
            own = f"{name}-seed{seed}"
            models[own] = values._replace(given={**values.given, "adapter": copy, SEED_OF: name})
            _check_free("model", own, declared["model"], values, problems)
    _check_names(models, problems)
    return {**declared, "adapter": adapters, "model": models}


def _check_names(models: Mapping[str, Values], problems: Problems) -> None:
    """Checks that what stands for all seeds of a model, or of a target, is not the name of something else."""
    taken = {
        f"{n}_{v}".lower(): f"target {quoted(f'{n}_{v}')}" for n, m in models.items() for v in _variants(m)
    }
    taken |= {name.lower(): f"model {quoted(name)}" for name in models}
    for values in models.values():
        name = values.given.get(SEED_OF)
        for each in (name, *(f"{name}_{variant}" for variant in _variants(values))) if name else ():
            if other := taken.pop(each.lower(), None):
                what = f"{quoted(each)}, which means all its seeds, is the name of the {other} too"
                problems.add(values.place, f"{what}; rename one")


def _variants(model: Values) -> list[str]:
    return [name for name in model.given.get("variants", ()) if name is not None]


class Seeded(Protocol):
    """A model, or a report of it."""

    @property
    def seed_of(self) -> str | None: ...


_Seeded = TypeVar("_Seeded", bound=Seeded)


def models_of(models: Iterable[_Seeded]) -> Mapping[str, tuple[_Seeded, ...]]:
    """The models of each declared model that has several seeds, in the order of the seeds."""
    found: dict[str, tuple[_Seeded, ...]] = {}
    for model in models:
        if model.seed_of is not None:
            found[model.seed_of] = (*found.get(model.seed_of, ()), model)
    return found


def _seeds(values: Values, problems: Problems) -> tuple[int, ...]:
    """The seeds of an adapter. Empty without any, or after a problem."""
    table = values.get("train")
    seeds = table.given.get("seeds", ()) if table is not None else ()
    for index, seed in enumerate(seeds):
        if not isinstance(seed, int) or not 0 <= seed < 2**32:
            problems.add(table.place.key("seeds", index), f"seeds: {seed} is not a whole number from 0")
            return ()
        if seed in seeds[:index]:
            problems.add(table.place.key("seeds", index), f"seeds has {seed} twice; keep one")
            return ()
    return tuple(seeds)


def _of_seed(values: Values, seed: int) -> Values:
    table: Values = values.given["train"]
    given = {key: value for key, value in table.given.items() if key != "seeds"}
    return values._replace(given={**values.given, "train": table._replace(given={**given, "seed": seed})})


def _check_free(
    kind: str, name: str, names: Mapping[str, Values], values: Values, problems: Problems
) -> None:
    if name in names:
        what = f"one seed of it is the {kind} {quoted(name)}, which is declared too; rename one"
        problems.add(values.place, what)


def of_all_seeds(spec: Spec) -> Mapping[str, tuple[str, ...]]:
    """What stands for all seeds of a model, or of one of its targets -> the names of these targets.

    The name of a model does not stand for its intermediates.
    """
    found: dict[str, tuple[str, ...]] = {}
    for name, models in models_of(spec.models.values()).items():
        variants = models[0].variants
        shown = [variant for variant in variants if not spec.variants[variant].intermediate]
        found[name] = tuple(f"{model.name}_{variant}" for model in models for variant in shown)
        for variant in variants:
            found[f"{name}_{variant}"] = tuple(f"{model.name}_{variant}" for model in models)
    return found


def seed_name(model: str) -> str:
    """The seed of a model of one seed, as a heading: "seed 3"."""
    return f"seed {model.rpartition('-seed')[2]}"
