"""What a project would take from its remotes and give to them: keys, texts, and what a plan expects of
them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from builder.errors import BuildError
from builder.keys import Key
from builder.plan.types import CONFIG, TargetPlan
from builder.project.project import Project
from builder.project.result_keys import reference_key, result_key
from builder.project.toolchain import device
from builder.sources.catalog import structure_key
from builder.sources.contents import INDEX
from builder.sources.facts import Unknown
from builder.sources.trained import recipe_of
from builder.spec.sharing import Remote
from builder.store import blobs, records, seals
from builder.store.holdings import usable_record, whole_manifest
from builder.store.types import Blob, FileEntry, Manifest, Record

if TYPE_CHECKING:
    from builder.remote.offer import Offer, Rules, Wanted
    from builder.remote.push import Bundle
    from builder.remote.same import Text

NO_REMOTE = "BUILDER_NO_REMOTE"  # set by `--no-remote`


def remotes_of(project: Project) -> tuple[Remote, ...]:
    """The remotes that a run may use, in the order of the file. Without any, nothing else here is
    imported.
    """
    return () if os.environ.get(NO_REMOTE) else tuple(project.spec.remotes.values())


@contextmanager
def without_remotes() -> Iterator[None]:
    """As with `--no-remote`, for a while."""
    former = os.environ.get(NO_REMOTE)
    os.environ[NO_REMOTE] = "1"
    try:
        yield
    finally:
        if former is None:
            del os.environ[NO_REMOTE]


def rules_of(project: Project, remote: Remote) -> Rules:
    """Whose bytes are taken. Raises BuildError where signatures cannot be checked here."""
    from builder.remote.offer import Rules
    from builder.remote.signing import trusted_keys

    kind = device() if project.spec.build.device == "same" else None
    return Rules(kind, trusted_keys(remote.trust) if remote.trust else None)


def wanted_of(project: Project, plans: Iterable[TargetPlan], *, results: bool = True) -> Wanted:
    """Everything that is kept of these targets, whether or not it is here."""
    from builder.remote.offer import Wanted

    found = Wanted()
    for plan in plans:
        manifests = {plan.key, *([plan.learned] if plan.learned else [])}
        measured, references = measured_of(project, plan) if results else (set[Key](), set[Key]())
        found |= Wanted(frozenset(manifests), records_of(plan) | references, frozenset(measured))
    return found


def records_of(plan: TargetPlan) -> frozenset[Key]:
    """The keys of the records that a target is made of."""
    made = {*(action.key for action in plan.actions), plan.config, *plan.measurements}
    made |= {plan.gguf.head} if plan.gguf else set()
    return frozenset({*made, structure_key(plan.base.weights)})


def measured_of(project: Project, plan: TargetPlan) -> tuple[set[Key], set[Key]]:
    """The keys of results, and those of the log-probs that they are compared with. Questions that are not
    there have none.
    """
    results, references = set[Key](), set[Key]()
    for suite in project.spec.suites_of(plan.target):
        with suppress(BuildError, OSError):
            results.add(result_key(project, plan.target.model, plan.measured, suite))
            if suite.kind == "fidelity":
                references.add(reference_key(project, plan, suite))
    return results, references


# -- giving --------------------------------------------------------------------------------------------------


def bundle_of(project: Project, plan: TargetPlan) -> Bundle | None:
    """A target with everything that belongs to it, as it lies here. None unless all of it is here."""
    from builder.remote.push import Bundle
    from builder.remote.same import Text

    store, held = project.store, set[Blob]()
    manifest = whole_manifest(store, plan.key)
    if manifest is None:
        return None
    texts = list[Text]()
    others = (key for key in (plan.learned, _trained(project, plan)) if key)
    for made in (manifest, *(whole_manifest(store, key) for key in others)):
        data = records.manifest_bytes(store, made.key) if made else None
        if made is not None and data is not None:
            texts.append(Text("manifest", made.key, data))
            held |= {entry.blob for entry in made.files}
    results, references = measured_of(project, plan)
    for key in sorted(records_of(plan) | references):
        record = usable_record(store, key)
        if record is not None:
            texts.append(Text("record", key, records.path(store, key).read_bytes()))
            held.add(record.blob)
    texts += _results(project, results)
    return Bundle(plan.name, plan.key, tuple(texts), frozenset(held), _root(project, plan, texts))


def loose_bundle(project: Project, keys: Iterable[Key]) -> Bundle:
    """Records and results that lie here, without a target: what a worker of a cluster has made so far.

    No root keeps them in the remote. They are there for a day, or until a target is pushed that needs them.
    """
    from builder.remote.push import Bundle
    from builder.remote.same import Text

    store, texts, held, results = project.store, list[Text](), set[Blob](), list[Key]()
    for key in sorted(keys):
        record = usable_record(store, key)
        if record is None:
            results.append(key)
            continue
        texts.append(Text("record", key, records.path(store, key).read_bytes()))
        held.add(record.blob)
    texts += _results(project, results)
    return Bundle("", Key(""), tuple(texts), frozenset(held), b"")


def sources_bundle(project: Project, plan: TargetPlan) -> Bundle:
    """What a target is made from and a remote may have: the structure of its base, a trained adapter."""
    from dataclasses import replace

    from builder.remote.same import Text

    found = loose_bundle(project, [structure_key(plan.base.weights)])
    key = _trained(project, plan)
    manifest = whole_manifest(project.store, key) if key else None
    data = records.manifest_bytes(project.store, manifest.key) if manifest else None
    if manifest is None or data is None:
        return found
    texts = (*found.texts, Text("manifest", manifest.key, data))
    return replace(found, texts=texts, blobs=found.blobs | {entry.blob for entry in manifest.files})


def _trained(project: Project, plan: TargetPlan) -> Key | None:
    """The key of the target's adapter, where it was trained here or pulled."""
    name = plan.target.model.adapter
    adapter = project.spec.adapters[name] if name else None
    if adapter is None or adapter.train is None:
        return None
    with suppress(BuildError, OSError):
        recipe = recipe_of(project.sources, adapter, adapter.train)
        return None if isinstance(recipe, Unknown) else recipe.key
    return None


def _results(project: Project, keys: Iterable[Key]) -> Iterator[Text]:
    from builder.remote.same import Text

    for key in sorted(keys):
        place = project.store.evals / key[:2] / f"{key}.json"
        if seals.read(place) is not None:
            yield Text("result", key, place.read_bytes())


def _root(project: Project, plan: TargetPlan, texts: Iterable[Text]) -> bytes:
    """What keeps all of it in the remote. The same target gives the same bytes."""
    said = {
        "target": plan.name,
        "project": project.spec.file.parent.resolve().name,
        "key": plan.key,
        "keys": sorted({plan.key, *(text.key for text in texts)}),
    }
    return seals.sealed(json.dumps(said, sort_keys=True) + "\n")


# -- taking --------------------------------------------------------------------------------------------------


def fitting(plans: Iterable[TargetPlan], offer: Offer) -> Offer:
    """An offer without what cannot be right: blocks of another size, targets of other files than are
    planned.
    """
    from dataclasses import replace

    sizes = {action.key: action.size for plan in plans for action in plan.actions}
    by_key = {plan.key: plan for plan in plans}
    refused = list(offer.refused)
    actions = {}
    for key, (record, text) in offer.records.items():
        if key in sizes and record.blob.size != sizes[key]:
            refused.append(f"block {key[:12]} has {record.blob.size} bytes instead of {sizes[key]}")
        else:
            actions[key] = record, text
    manifests = {}
    for key, (manifest, text) in offer.manifests.items():
        if key in by_key and not _is_planned(by_key[key], manifest):
            refused.append(f"target {key[:12]} has other files than are planned")
        else:
            manifests[key] = manifest, text
    return replace(offer, records=actions, manifests=manifests, refused=tuple(refused))


def _is_planned(plan: TargetPlan, manifest: Manifest) -> bool:
    """Whether a manifest lists the files of a target, each with the right size where that is known."""
    held = {entry.name: entry.blob for entry in manifest.files}
    if any(held.get(entry.name) != entry.blob for entry in plan.base.aux) or CONFIG not in held:
        return False
    if plan.needs is not None:
        return True
    shards = {action.file: action.size for action in plan.actions}
    first = plan.gguf.file if plan.gguf else INDEX
    sized = all(name in held and held[name].size == size for name, size in shards.items())
    return sized and held.keys() == {*shards, CONFIG, first, *(entry.name for entry in plan.base.aux)}


def records_from(plan: TargetPlan, manifest: Manifest) -> Iterator[Record]:
    """The records that follow from a whole target: where somebody's record names other bytes, the target
    counts.
    """
    by_name: dict[str, FileEntry] = {entry.name: entry for entry in manifest.files}
    made = {k: v for k, v in manifest.toolchain.items() if isinstance(v, str)}
    for action in plan.actions:
        if entry := by_name.get(action.file):
            yield Record(action.key, "block", entry.blob, made)
    if plan.gguf is not None and (entry := by_name.get(plan.gguf.file)):
        yield Record(plan.gguf.head, "gguf head", entry.blob, made)
    if plan.needs is None and (entry := by_name.get(CONFIG)):
        yield Record(plan.config, "config", entry.blob, made)


def has(project: Project, blob: Blob) -> bool:
    return blobs.has(project.store, blob)


def knows(project: Project, key: Key) -> bool:
    """Whether a record, a manifest or a result is here, with its bytes."""
    store = project.store
    if usable_record(store, key) is not None or whole_manifest(store, key) is not None:
        return True
    return seals.read(store.evals / key[:2] / f"{key}.json") is not None
