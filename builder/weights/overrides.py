"""Which override decides of a path, which of them decide of none, and what was meant by those. Pure.

A variant may serve several models, so a pattern that matches nothing in one of them is no mistake by itself:
it is remarked. A slip of the keys is one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from builder.console.words import nearest
from builder.spec.types import Override, Variant
from builder.weights.structure import Structure

_WILD = re.compile(r"[*?]|\[[^]]*\]")
_SHORTEST = 4


@dataclass(frozen=True)
class Idle:
    """A pattern that decides of nothing. `near`: one that would; `slip`: whether it must have been meant."""

    pattern: str
    near: str | None
    slip: bool

    @property
    def text(self) -> str:
        hint = f'; did you mean "{self.near}"?' if self.near else ""
        return f'override "{self.pattern}" matches nothing{hint}'


def deciding(variant: Variant, path: str) -> Override | None:
    """The first override whose pattern matches."""
    return next((o for o in variant.overrides if fnmatchcase(path, o.pattern)), None)


def idle(structure: Structure, variant: Variant) -> tuple[Idle, ...]:
    """The overrides whose pattern matches nothing that can be quantized."""
    paths = [module.path for module in structure.quantizable]
    patterns = [override.pattern for override in variant.overrides]
    without = [pattern for pattern in patterns if not any(fnmatchcase(path, pattern) for path in paths)]
    words = _words(paths) if without else {}
    return tuple(_idle(pattern, words) for pattern in without)


def _idle(pattern: str, words: Mapping[str, str]) -> Idle:
    path = pattern.removesuffix(".weight")
    wild = _WILD.search(path) is not None
    leaf = _WILD.sub("", path.rpartition(".")[2])
    close = (None if wild else nearest(path, words)) or nearest(leaf, words)
    if close is None:
        return Idle(pattern, None, slip=False)
    return Idle(pattern, words[close], slip=_is_slip(leaf, close.rpartition(".")[2]))


def _is_slip(typed: str, name: str) -> bool:
    """Whether letters changed places, or one was left out or is too many.

    k_proj is no slip of o_proj: one model has this, another that.
    """
    if min(len(typed), len(name)) < _SHORTEST or typed == name:
        return False
    short, long = sorted((typed, name), key=len)
    if len(short) == len(long):
        return sorted(short) == sorted(long)
    return any(short == long[:at] + long[at + 1 :] for at in range(len(long)))


def _words(paths: list[str]) -> Mapping[str, str]:
    """What somebody may have written -> the pattern for it: paths, last names, and words of one last name."""
    by_leaf: dict[str, list[str]] = {}
    for path in paths:
        by_leaf.setdefault(path.rpartition(".")[2], []).append(path)
    whole = {leaf: found[0] if len(found) == 1 else f"*.{leaf}" for leaf, found in by_leaf.items()}
    parts = [(word, leaf) for leaf in by_leaf for word in leaf.split("_") if len(word) >= _SHORTEST]
    single = {word: whole[leaf] for word, leaf in parts if sum(w == word for w, _ in parts) == 1}
    return {**single, **whole, **{path: path for path in paths}}
