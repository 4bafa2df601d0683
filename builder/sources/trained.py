"""Adapters that are trained here: their keys, and their folders in the store.

A trained adapter has a key like everything that is built: the weights of its base, how text becomes tokens,
the rows, and the settings. Its manifest names its files, and its view is a folder as any adapter is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from builder.console.words import shown
from builder.errors import SourceMissing
from builder.keys import Digest, Key, make_key, named_key
from builder.sources.facts import BaseIdentity, Unknown
from builder.spec.training import TRAIN, VALID, Training
from builder.spec.types import Adapter, Base, Spec
from builder.store import records, views
from builder.store.holdings import whole_manifest
from builder.store.layout import Store
from builder.store.types import Manifest, Scalar

TRAINER = "training/1"  # another way to train, another name
NOT_TRAINED = "not trained"
_SAID = {"base": "base", "prompts": "tokenizer or chat template"}


class Catalog(Protocol):
    """What this module uses of builder.sources.catalog.Catalog."""

    spec: Spec
    store: Store

    def known_digest(self, path: Path) -> Digest | None: ...

    def base_identity(self, base: Base) -> BaseIdentity | Unknown: ...


@dataclass(frozen=True)
class Recipe:
    """Everything that a trained adapter is made from: digests by name, and settings by name."""

    inputs: Mapping[str, Digest]
    settings: Mapping[str, Scalar]

    @property
    def key(self) -> Key:
        return named_key(TRAINER, {"inputs": self.inputs, "settings": self.settings})

    def checkpoint_key(self, step: int) -> Key:
        """The key of what a run has after so many steps."""
        return make_key("training-checkpoint/1", self.key, step)


def recipe_of(catalog: Catalog, adapter: Adapter, training: Training) -> Recipe | Unknown:
    """What an adapter is trained from. Raises SourceError."""
    base = catalog.base_identity(catalog.spec.bases[adapter.base])
    if isinstance(base, Unknown):
        return Unknown(f"waits: base:{adapter.base} {base.reason}", base.error)
    inputs: dict[str, Digest] = {"base": base.weights, "prompts": base.prompts}
    for name in (TRAIN, VALID):
        path = training.data / name
        if not path.is_file():
            if name == VALID and training.keep == "last" and training.patience is None:
                continue
            hint = f'{VALID} chooses the best adapter. keep = "last" does without.' if name == VALID else None
            raise SourceMissing(table=f"adapter.{adapter.name}.train", path=path, hint=hint)
        digest = catalog.known_digest(path)
        if digest is None:
            return Unknown(f"is not trained yet: {name} has not been fingerprinted yet", short=NOT_TRAINED)
        inputs[name] = digest
    return Recipe(inputs, training.settings)


def located(catalog: Catalog, adapter: Adapter, training: Training) -> Adapter | Unknown:
    """A trained adapter with its folder, or why it has none. Raises SourceError."""
    recipe = recipe_of(catalog, adapter, training)
    if isinstance(recipe, Unknown):
        return recipe
    key = recipe.key
    manifest = whole_manifest(catalog.store, key)
    if manifest is None:
        reason = f"is not trained yet{_since(catalog.store, adapter, recipe)}"
        return Unknown(reason, short=NOT_TRAINED)
    folder = catalog.store.adapters / key
    if not views.is_current(catalog.store, folder, manifest):
        return Unknown("is trained, but its folder is not shown", short="folder missing")
    return replace(adapter, path=folder, train=None)


def manifest_of(catalog: Catalog, adapter: Adapter) -> Manifest | None:
    """The manifest of an adapter that is trained as it is declared now. Raises SourceError."""
    if adapter.train is None:
        return None
    recipe = recipe_of(catalog, adapter, adapter.train)
    return None if isinstance(recipe, Unknown) else whole_manifest(catalog.store, recipe.key)


def changes(recipe: Recipe, former: Manifest) -> tuple[str, ...]:
    """What differs from a former training, in a few words each."""
    found = []
    for name in sorted({*recipe.inputs, *former.inputs} - {"base_name"}):
        if recipe.inputs.get(name) != former.inputs.get(name):
            found.append(f"{_SAID.get(name, name)} changed")
    for name in sorted({*recipe.settings, *former.settings}):
        before, now = former.settings.get(name), recipe.settings.get(name)
        if before != now:
            said = ["unset" if each is None else shown(each) for each in (before, now)]
            found.append(f"{name} {said[0]} -> {said[1]}")
    return tuple(found)


def _since(store: Store, adapter: Adapter, recipe: Recipe) -> str:
    """What changed since the adapter of this name was trained last, as the end of a sentence."""
    same = [m for m in records.manifests(store) if m.kind == "adapter" and m.name == adapter.name]
    former = max(same, key=lambda manifest: manifest.created, default=None)
    if former is None:
        return ""
    if former.key == recipe.key:
        return ": its bytes are gone"
    return f": {', '.join(changes(recipe, former)) or 'the way of training changed'}"
