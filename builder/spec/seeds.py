"""`seeds = [0, 1, 2]` in [adapter.NAME.train] stands for several adapters, and for several models of each.

The tables are copied before anything else looks at them. So an adapter of one seed is like any other.
"""

from __future__ import annotations

from collections.abc import Mapping

from builder.console.words import quoted
from builder.spec.problems import Problems
from builder.spec.shape import Declared, Values


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
            models[own] = values._replace(given={**values.given, "adapter": copy})
            _check_free("model", own, declared["model"], values, problems)
    return {**declared, "adapter": adapters, "model": models}


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
