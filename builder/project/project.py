"""A project: its declarations, its store, and what is known of its sources. Opening one builds nothing.

Planning hashes only what is small: a base that has never been fingerprinted is Unknown until its task has
run, so that listing tasks stays instant whatever the size of the weights.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from builder.errors import BuildError, SourceChanged, SourceError
from builder.keys import Key, digest_bytes
from builder.plan import allocation, shares
from builder.plan.allocation import Allocation
from builder.plan.planning import make_plan
from builder.plan.types import Plan, Sources
from builder.project import memo, store_memory
from builder.project.measurements import known
from builder.project.questions import judging_key
from builder.project.toolchain import toolchain
from builder.sources.catalog import Catalog
from builder.sources.facts import Unknown
from builder.spec.parse import parse_spec
from builder.spec.types import Adapter, Spec
from builder.store.briefs import Seen
from builder.store.format import open_store
from builder.store.layout import Store
from builder.store.statcache import StatCache
from builder.weights import experts
from builder.weights.experts import Routing

_Source = TypeVar("_Source")
_Facts = TypeVar("_Facts")
_REMEMBERED = ("plan", "keys", "known", "seen")  # what a Project looks up once


@dataclass
class Project:
    """The declarations of one artifacts.toml and the store they name."""

    spec: Spec
    store: Store
    cache: StatCache
    sources: Catalog

    @classmethod
    def load(cls, file: Path = Path("artifacts.toml")) -> Project:
        """Raises SpecError, StoreError."""
        spec = parse_spec(file)
        store = store_of(spec)
        cache = StatCache(store)
        return cls(spec, store, cache, Catalog(spec, store, cache))

    @cached_property
    def plan(self) -> Plan:
        """All targets with their keys, from what is known now."""
        return make_plan(self.spec, self.planned_from())

    @cached_property
    def keys(self) -> Mapping[str, Key]:
        """The current key of every target that can be planned; without planning if nothing changed."""
        return {name: known.key for name, known in self.known.items()}

    @cached_property
    def known(self) -> Mapping[str, memo.Known]:
        """All keys of every target that can be planned; without planning if nothing changed."""
        inputs = memo.inputs(self.spec, self.sources)
        if inputs and (known := memo.recall(self.cache, inputs)):
            return known
        planned_now = "plan" not in self.__dict__
        keys = {target.name: memo.Known(target.key, target.measured) for target in self.plan.resolved()}
        whole = planned_now and len(keys) == len(self.plan.targets)
        if inputs and whole and memo.inputs(self.spec, self.sources) == inputs:  # nothing changed meanwhile
            memo.remember(self.cache, inputs, keys)
        return keys

    @cached_property
    def seen(self) -> Seen:
        """What this run has found in the store."""
        return Seen(self.store, self.cache)

    def adapter(self, name: str) -> Adapter:
        """An adapter with its folder. Raises SourceChanged while it is not trained, SourceError."""
        found = self.sources.located(self.spec.adapters[name])
        if isinstance(found, Unknown):
            raise found.error or SourceChanged(source=f"adapter:{name}", path=self.spec.adapters[name].path)
        return found

    def is_built(self, name: str) -> bool:
        """Whether a target is up to date, at once if it is; `state` decides when this says no."""
        key = self.keys.get(name)
        return key is not None and self.seen.shows(name, key)

    def forget_plan(self) -> None:
        """Plan afresh: a source has been fingerprinted, or its files may have changed."""
        for name in _REMEMBERED:
            self.__dict__.pop(name, None)

    def __getstate__(self) -> dict[str, object]:
        """For a process that is spawned: it plans afresh."""
        return {name: value for name, value in self.__dict__.items() if name not in _REMEMBERED}

    def planned_from(self) -> Sources:
        """What is known of the sources that the models use."""
        used = {model.base for model in self.spec.models.values()}
        worn = {model.adapter for model in self.spec.models.values() if model.adapter}
        return Sources(
            {name: _usable(self.sources.base_facts, self.spec.bases[name]) for name in sorted(used)},
            {name: _usable(self.sources.adapter_facts, self.spec.adapters[name]) for name in sorted(worn)},
            toolchain() if self.spec.build.strict_toolchain else "",
            {v.name: self.sources.calibration(v) for v in self.spec.variants.values() if v.calibration},
            self.allocation,
            self._questions(),
            self.share,
            self.routing,
        )

    def _questions(self) -> Mapping[str, Key | Unknown]:
        """What the models ask and require that have a variant which searches its size."""
        found: dict[str, Key | Unknown] = {}
        for target in self.spec.targets:
            if (goal := target.variant.goal) is not None and goal.smallest:
                asked, model, folder = self.spec.search_suites(target), target.model, self.spec.file.parent
                try:
                    found[model.name] = judging_key(self.sources, folder, asked, model.require)
                except BuildError as error:
                    found[model.name] = Unknown(error.message.rstrip("."), error)
        return found

    def allocation(self, key: Key) -> Allocation | None:
        """What was chosen for a target that asks for a size, if that is in the store."""
        return known(self.store, key, allocation.from_text)

    def share(self, key: Key) -> shares.Share | None:
        """The share of experts that was chosen for a target, if that is in the store."""
        return known(self.store, key, shares.from_text)

    def routing(self, key: Key) -> Routing | None:
        """What was measured of the experts of a base, if that is in the store."""
        return known(self.store, key, experts.from_text)


def store_of(spec: Spec, *, asked: bool = False) -> Store:
    """The store of a declaration. One in the declaration's folder is made where there is none.

    Another one is made too, but not in the place of a store that was there, nor on a disk that is not
    mounted, unless it is `asked` for. Raises StoreError, StoreGone.
    """
    name = checkout_name(spec)
    root = _without_dots(spec.store)
    if not name:
        return open_store(root)
    create = asked or not store_memory.is_known(spec.store)
    store = open_store(root, name, create=create, parents=asked)
    store_memory.remember(spec.store)
    return store


def _without_dots(path: Path) -> Path:
    """The path without `..`, as messages should name it, unless a link on the way makes another place."""
    plain = Path(os.path.normpath(path))
    return plain if plain.resolve() == path.resolve() else path


def checkout_name(spec: Spec) -> str:
    """How a store that several checkouts may share calls this one; empty for a store that lies in its folder.

    What a person names (views, pins, releases) belongs to one checkout. A store inside the folder moves with
    it, so it needs no name; another one is told apart by the path of the folder.
    """
    folder = spec.file.parent.resolve()
    if spec.store.resolve().is_relative_to(folder):
        return ""
    plain = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in folder.name).lstrip(
        "."
    )
    return f"{plain or 'checkout'}-{digest_bytes(bytes(folder))[:8]}"


def _usable(facts: Callable[[_Source], _Facts | Unknown], source: _Source) -> _Facts | Unknown:
    """One source that cannot be used leaves the targets of the others plannable; its own task says why."""
    try:
        return facts(source)
    except SourceError as error:
        return Unknown(f"cannot be used: {error.message.rstrip('.')}", error)
