"""What planning must know about a source, or why it is not known, as frozen values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace

from builder.errors import BuildError
from builder.keys import Digest, Key
from builder.store.types import FileEntry
from builder.weights.experts import Pruned
from builder.weights.structure import Structure

NOT_YET = "has not been fingerprinted yet"


@dataclass(frozen=True)
class BaseIdentity:
    """A fingerprinted base, part by part, so that each key takes only what can change its bytes.

    `weights`: the shards, and those settings of config.json that a model of mlx-lm reads. `config`:
    config.json as it is. `vocabulary`: how text becomes tokens. `prompts`: the vocabulary and the chat
    templates. `aux`: the files that every target copies as they are. `imported`: the key of the import that
    holds the files of a GGUF. `former`: the identity of the weights in stores of format 1, None where it
    proves nothing.
    """

    weights: Digest
    config: Digest
    vocabulary: Digest
    prompts: Digest
    aux: tuple[FileEntry, ...]
    imported: Key | None = None
    former: Digest | None = None


@dataclass(frozen=True)
class BaseFacts:
    """A fingerprinted base and its structure: all that planning needs.

    `pruned`: what a target leaves out of it. `structure` is what is left then, and `whole` that of the base.
    """

    identity: BaseIdentity
    structure: Structure
    pruned: Pruned | None = None

    @property
    def weights(self) -> Digest:
        return self.identity.weights

    @property
    def whole(self) -> Structure:
        return self.pruned.whole if self.pruned else self.structure

    @property
    def aux(self) -> tuple[FileEntry, ...]:
        return self.identity.aux


@dataclass(frozen=True)
class OwnTokenizer:
    """The tokenizer and templates in an adapter's folder.

    `files` are those of the folder. `aux`, `vocabulary` and `prompts` are what BaseIdentity says, if the
    files are used. `used`: the declaration asks for them. `differs` says how they differ from the base's.
    `settled`: the declaration says which ones to use.
    """

    files: tuple[FileEntry, ...]
    aux: tuple[FileEntry, ...]
    vocabulary: Digest
    prompts: Digest
    used: bool
    settled: bool
    differs: tuple[str, ...]

    def on(self, base: BaseIdentity) -> BaseIdentity:
        """The base's identity with this tokenizer, if it is used."""
        if not self.used:
            return base
        return replace(base, vocabulary=self.vocabulary, prompts=self.prompts, aux=self.aux)


@dataclass(frozen=True)
class AdapterFacts:
    """A fingerprinted adapter: its digest, block -> identity of its slice, and the paths that it changes."""

    digest: Digest
    slices: Mapping[str, Key]
    paths: frozenset[str]
    tokenizer: OwnTokenizer | None = None


def adapter_to_text(facts: AdapterFacts) -> str:
    """The facts of an adapter, without its tokenizer, as text to remember."""
    return json.dumps([facts.digest, dict(facts.slices), sorted(facts.paths)])


def adapter_from_text(text: str) -> AdapterFacts:
    """What `adapter_to_text` wrote."""
    digest, slices, paths = json.loads(text)
    return AdapterFacts(Digest(digest), slices, frozenset(paths))


@dataclass(frozen=True)
class Unknown:
    """A source that cannot be used for planning yet. `reason` is one clause.

    With `error`, the source can never be used as it is. `short` is the reason in two or three words.
    """

    reason: str
    error: BuildError | None = None
    short: str = ""


@dataclass(frozen=True)
class Calibration:
    """The text of a learned variant: the digest of the file, and how it is read (`jsonl` or `text`)."""

    digest: Digest
    format: str
