"""Finds the override that decides about a path, and the overrides that match no path. Pure.

A variant may serve several models. So a pattern that matches nothing in a model need not be a mistake, and
gives only a remark. A pattern that is a misspelling is a mistake.
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
    """A pattern that matches nothing. `near` is a similar pattern that matches, or None.

    `slip` says that the pattern is a misspelling of `near`.
    """

    pattern: str
    near: str | None
    slip: bool

    @property
    def text(self) -> str:
        hint = f'; did you mean "{self.near}"?' if self.near else ""
        return f'override "{self.pattern}" matches nothing{hint}'


def deciding(variant: Variant, path: str) -> Override | None:
    """The first override whose pattern matches the path, or None."""
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
    """Whether `typed` is `name` with letters in another order, one letter missing or one letter too many.

    A replaced letter does not count: k_proj and o_proj are both names of real modules.
    """
    if min(len(typed), len(name)) < _SHORTEST or typed == name:
        return False
    short, long = sorted((typed, name), key=len)
    if len(short) == len(long):
        return sorted(short) == sorted(long)
    return any(short == long[:at] + long[at + 1 :] for at in range(len(long)))


def _words(paths: list[str]) -> Mapping[str, str]:
    """What somebody may have written -> the pattern that matches it.

    The keys are paths, last names of paths, and words that stand in only one last name.
    """
    by_leaf: dict[str, list[str]] = {}
    for path in paths:
        by_leaf.setdefault(path.rpartition(".")[2], []).append(path)
    whole = {leaf: found[0] if len(found) == 1 else f"*.{leaf}" for leaf, found in by_leaf.items()}
    parts = [(word, leaf) for leaf in by_leaf for word in leaf.split("_") if len(word) >= _SHORTEST]
    single = {word: whole[leaf] for word, leaf in parts if sum(w == word for w, _ in parts) == 1}
    return {**single, **whole, **{path: path for path in paths}}
