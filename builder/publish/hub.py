"""Publishing to the Hugging Face hub with its own client: one commit that is seen whole or not at all.

Large files go first, and nobody sees them. What a run has sent stays on the server, so the next run goes on
from there. The commit names the commit that was looked at. When somebody else was faster, the server refuses.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from builder.build.attestation import BUILD_TYPE
from builder.console.events import Emit, Sending
from builder.publish.bundle import ATTESTATION, CARD, Bundle, File, Plan, changes
from builder.publish.card import PLOT
from builder.publish.errors import PlaceFailed, PlaceRefused
from builder.spec.destinations import HubPlace
from builder.store import tmp
from builder.store.layout import Store

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, HfApi

_BATCH = 200_000_000  # bytes that are sent between two signs of life
_WAITS = (1, 2, 4)  # seconds before the commit is tried again
_OF_THE_HUB = {".gitattributes", CARD}  # a new repository may have these


class Hub:
    """One repository of the hub, as `plan` saw it and `apply` changes it."""

    def __init__(self, place: HubPlace, store: Store) -> None:
        from huggingface_hub import HfApi

        self._place = place
        self._store = store
        self._api: HfApi = HfApi(library_name="modelkiln")

    def plan(self, bundle: Bundle, *, private: bool) -> Plan:
        """What the repository lacks. Raises PlaceRefused for one that is not ours, PlaceFailed."""
        from huggingface_hub.errors import RepositoryNotFoundError

        with self._explained():
            try:
                info = self._api.model_info(self._place.repo)
            except RepositoryNotFoundError as error:
                if error.response.status_code == 401:
                    raise
                return Plan(str(self._place), bundle, changes(bundle, {}, {}), exists=False)
            commit = str(info.sha)
            there = self._tree(commit)
            ours = self._ours(there, commit)
        if private and info.private is False:
            bundle = replace(bundle, notes=(*bundle.notes, f"{self._place} is public, and stays public"))
        digests = {name: digest for name, (digest, _) in there.items()}
        sizes = {name: there[name][1] for name in ours if name in there}
        return Plan(str(self._place), bundle, changes(bundle, digests, sizes), exists=True, state=commit)

    def apply(self, made: Plan, *, private: bool, emit: Emit) -> str:
        """Sends what is lacking and makes one commit; its id. Raises PlaceFailed, PlaceRefused."""
        from huggingface_hub import CommitOperationDelete
        from huggingface_hub.utils import disable_progress_bars

        disable_progress_bars()  # `emit` shows the progress
        with self._explained():
            parent = made.state
            if not made.exists:
                self._api.create_repo(self._place.repo, private=private, exist_ok=True)
                parent = str(self._api.model_info(self._place.repo).sha)
                if stranger := next((name for name in self._tree(parent) if name not in _OF_THE_HUB), None):
                    raise self._foreign(stranger)
            wanted = {*made.named("send")}
            adding = self._operations([file for file in made.bundle.files if file.name in wanted])
            self._send(adding, emit)
            deleting = [CommitOperationDelete(name) for name in made.named("delete")]
            commit = self._commit(made.bundle, [*adding, *deleting], parent)
            self._check(made.bundle, commit)
        return commit

    def _operations(self, files: Sequence[File]) -> list[CommitOperationAdd]:
        from huggingface_hub import CommitOperationAdd

        made = []
        for file in files:
            source = file.source if isinstance(file.source, bytes) else str(file.source)
            operation = CommitOperationAdd(file.name, source)
            if operation.upload_info.sha256.hex() != file.sha256:
                what = f"{file.name} is damaged in the store"
                raise PlaceFailed(to=self._place, what=what, hint="`doit verify --repair` builds it again.")
            made.append(operation)
        return made

    def _send(self, adding: Sequence[CommitOperationAdd], emit: Emit) -> None:
        """Large files. The server says which it has, and these are not sent."""
        total = sum(each.upload_info.size for each in adding)
        done, batch, filled = 0, [], 0
        for number, operation in enumerate(adding, start=1):
            batch.append(operation)
            filled += operation.upload_info.size
            if filled >= _BATCH or number == len(adding):
                self._api.preupload_lfs_files(self._place.repo, batch, free_memory=False)
                done, batch, filled = done + filled, [], 0
                emit(Sending(self._place.repo, done, total))

    def _commit(self, bundle: Bundle, operations: Sequence[Any], parent: str) -> str:
        """One commit on `parent`. An answer that was lost is noticed, so nothing is committed twice."""
        from huggingface_hub.errors import HfHubHTTPError, HTTPError

        for wait in (*_WAITS, None):
            try:
                made = self._api.create_commit(
                    self._place.repo,
                    operations,
                    commit_message=f"Publish {bundle.target} with modelkiln",
                    parent_commit=parent,
                )
                return str(made.oid)
            except HTTPError as error:
                status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
                if status is not None and status < 500 and status != 412:
                    raise
                now = str(self._api.model_info(self._place.repo).sha)
                if now != parent:
                    if self._lacks(bundle, now) is None:
                        return now
                    raise self._moved() from error
                if wait is None or status == 412:
                    raise
                time.sleep(wait)
        raise AssertionError

    def _moved(self) -> PlaceFailed:
        what = "somebody else changed the repository meanwhile, so nothing was committed"
        return PlaceFailed(to=self._place, what=what, hint="Look at it, then run the same command again.")

    def _check(self, bundle: Bundle, commit: str) -> None:
        """Whether the server shows what was sent: it is asked, not believed."""
        if (name := self._lacks(bundle, commit)) is not None:
            what = f"the server took the commit {commit[:12]}, but does not show {name} as it was sent"
            raise PlaceFailed(to=self._place, what=what, hint="Look at the repository before you use it.")

    def _lacks(self, bundle: Bundle, commit: str) -> str | None:
        there = self._tree(commit)
        for file in bundle.files:
            if there.get(file.name, ("", 0))[0] not in (file.sha256, file.git):
                return file.name
        return None

    def _tree(self, commit: str) -> dict[str, tuple[str, int]]:
        """Name -> (sha256 of a large file, else git's digest; size) of every file of a commit."""
        from huggingface_hub.hf_api import RepoFile

        found = self._api.list_repo_tree(self._place.repo, recursive=True, revision=commit)
        return {
            each.path: (each.lfs.sha256 if each.lfs else each.blob_id, each.size)
            for each in found
            if isinstance(each, RepoFile)
        }

    def _ours(self, there: Mapping[str, object], commit: str) -> set[str]:
        """The files that an earlier publication put there, by its attestation. Raises PlaceRefused."""
        strangers = [name for name in there if name not in _OF_THE_HUB]
        if ATTESTATION not in there:
            if strangers:
                raise self._foreign(strangers[0])
            return set()
        with tmp.new_folder(self._store) as folder:
            path = self._api.hf_hub_download(self._place.repo, ATTESTATION, revision=commit, local_dir=folder)
            try:
                with open(path, encoding="utf-8") as file:  # noqa: PTH123 the client gives a str
                    said = json.load(file)
                kind = said["predicate"]["buildDefinition"]["buildType"]
                named = {str(subject["name"]) for subject in said["subject"]}
            except (ValueError, KeyError, TypeError):
                raise self._foreign(ATTESTATION) from None
        if kind != BUILD_TYPE:
            raise self._foreign(ATTESTATION)
        return {*named, ATTESTATION, CARD, PLOT} & {*there}

    def _foreign(self, name: str) -> PlaceRefused:
        what = f"the repository exists, and {name} in it was not published by this program"
        return PlaceRefused(to=self._place, what=what, hint="Name another repository, or empty that one.")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turns the client's errors into one line. No token is ever part of it."""
        from huggingface_hub.errors import (
            HfHubHTTPError,
            HTTPError,
            LocalTokenNotFoundError,
            OfflineModeIsEnabled,
        )

        try:
            yield
        except OfflineModeIsEnabled:
            raise self._failed("HF_HUB_OFFLINE is set, so the hub is not asked", "Unset it.") from None
        except LocalTokenNotFoundError:
            raise self._failed("no token", _LOG_IN) from None
        except HfHubHTTPError as error:
            raise self._refusal(error) from error
        except (HTTPError, ConnectionError, TimeoutError) as error:
            what = f"the hub cannot be reached ({type(error).__name__})"
            raise self._failed(what, "The same command goes on from where this ended.") from error

    def _refusal(self, error: Any) -> PlaceFailed:
        status = error.response.status_code
        said = " ".join((error.server_message or "").split())
        said = f" ({said[:200]})" if said else ""
        match status:
            case 401:
                return self._failed(f"the hub knows no such token{said}", _LOG_IN)
            case 403:
                hint = "Use a token with the right to write to this owner: `hf auth login`."
                return self._failed(f"the token has no right to write there{said}", hint)
            case 404:
                return self._failed(f"the owner or the repository does not exist{said}", "Check the name.")
            case 412:
                return self._moved()
        return self._failed(f"the hub answered {status}{said}", None)

    def _failed(self, what: str, hint: str | None) -> PlaceFailed:
        return PlaceFailed(to=self._place, what=what, hint=hint)


_LOG_IN = "Log in with `hf auth login`, or set HF_TOKEN."
