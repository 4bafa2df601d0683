"""Writes the text of a commented artifacts.toml that declares what was found nearby."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from builder.scaffold.nearby import FoundAdapter, FoundBase, Nearby, plain_name, quoted
from builder.weights.foreign import original_name

VARIANTS: Mapping[str, tuple[str, ...]] = {
    "f16": (
        'dtype = "float16"',
        "intermediate = true                 # exists only while something needs it",
    ),
    "4bit": ("bits = 4", "group_size = 64"),
    "5bit": ("bits = 5", "group_size = 64"),
    "6bit": ("bits = 6", "group_size = 64"),
    "8bit": ("bits = 8", "group_size = 64"),
}
_DEQUANTIZE = (
    "dequantize = true                   # it is quantized (as for QLoRA); fused into rounded weights,",
    "                                    # most of what the adapter learned would be rounded away",
)
_UNREADABLE = (
    "    # EDIT: quantized with {}, which mlx-lm cannot read. Name the original, unquantized checkpoint"
)
_ANY_REVISION = 'revision = "main"    # a commit never changes; a branch may'
_QUANTIZED = r"\dbit\b|\b(mx|nv)fp\d\b"
_REPO = r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*"


class Bases:
    """The bases that the proposal declares, each under its own name.

    A base that mlx-lm cannot read is declared only where nothing else can be proposed.
    """

    def __init__(self, found: Nearby) -> None:
        self.declared: list[FoundBase] = []
        self.used: set[str] = set()
        self._cached = [base for base in found.cached if not base.unreadable]
        self._unreadable = [base for base in (*found.bases, *found.cached) if base.unreadable]
        self._unreadable_here = [base for base in found.bases if base.unreadable]
        for base in found.bases:
            if not base.unreadable:
                self.declare(base)

    def declare(self, base: FoundBase) -> FoundBase:
        """Adds a base and returns it with a name that no other base has."""
        named = replace(base, name=free_name(base.name, self.used))
        self.declared.append(named)
        return named

    def of(self, adapter: FoundAdapter) -> FoundBase:
        """The base that an adapter was trained on. It is declared if it is not declared yet."""
        said = adapter.base
        if said is None:
            return self.first()
        if found := self._here(said):
            return found
        original, bad = original_name(said), _called(said, self._unreadable)
        if original is not None and (found := self._here(original) or self._called_alike(original)):
            return found
        if original is not None and re.fullmatch(_REPO, original):
            why = f"# the original of {said.rpartition('/')[2]}, which mlx-lm cannot read"
            lines: tuple[str, ...] = (f"hf = {quoted(original)}    {why}", _ANY_REVISION)
            return self.declare(
                FoundBase(plain_name(Path(original).name), lines, frozenset({said, original}))
            )
        if bad is not None:
            return self.declare(bad)
        lines = (f"path = {quoted(said)}    # EDIT: not found here",)
        if re.fullmatch(_REPO, said):
            lines = (f"hf = {quoted(said)}", _ANY_REVISION)
        quantized = bool(re.search(_QUANTIZED, said.lower()))  # the base is not here, so ask its name
        return self.declare(FoundBase(plain_name(Path(said).name), lines, frozenset({said}), quantized))

    def _here(self, said: str) -> FoundBase | None:
        """The base of that name that is declared, or in the cache."""
        if known := _called(said, self.declared):
            return known
        cached = _called(said, self._cached)
        return self.declare(cached) if cached else None

    def _called_alike(self, original: str) -> FoundBase | None:
        """A base of that name by another organisation, or in other letters: copies keep a model's name."""
        wanted = Path(original).name.lower()
        for base in (*self.declared, *self._cached):
            if wanted in {Path(alias).name.lower() for alias in base.aliases}:
                return base if base in self.declared else self.declare(base)
        return None

    def first(self) -> FoundBase:
        """The first base, for an adapter that names none. Without any base, declares a base to be edited."""
        if self.declared:
            return self.declared[0]
        if self._unreadable_here:
            return self.declare(self._unreadable_here[0])
        remark = "# EDIT: a folder in Hugging Face layout, or gguf, or hf and revision"
        return self.declare(FoundBase("base", (f'path = "models/base"    {remark}',), frozenset()))

    def others(self) -> list[FoundBase]:
        """The other bases in the cache, under names that are free."""
        taken = {base.aliases for base in self.declared}
        return [
            replace(base, name=free_name(base.name, self.used))
            for base in self._cached
            if base.aliases not in taken
        ]


def propose(found: Nearby, schema: str) -> str:
    """The text of artifacts.toml. `schema` is the path of the JSON Schema.

    It declares the bases in the folder and the bases that its adapters name. Other bases in the cache are
    comments.
    """
    bases = Bases(found)
    adapters: list[str] = []
    models: list[tuple[str, str]] = []
    used: set[str] = set()
    for adapter in found.adapters:
        name = free_name(adapter.name, used)
        remark = "" if adapter.base else "    # EDIT: the adapter does not say what it was trained on"
        base = quoted(bases.of(adapter).name)
        adapters.append(f"[adapter.{name}]\nbase = {base}{remark}\npath = {quoted(adapter.path)}\n")
        models.append((name, f"adapter = {quoted(name)}"))
    if not models:
        first = bases.first().name
        adapters.append(
            "# [adapter.tuned]                   # what was learned on top of a base\n"
            f'# base = {quoted(first)}\n# path = "adapters/tuned"\n'
        )
        models = [(first, f"base = {quoted(first)}")]
    quantized = json.dumps([name for name in VARIANTS if name != "f16"])
    parts = [
        f"#:schema {schema}",
        "# What is built here, and from what. `doit` builds it, `doit plan` says what that costs.\n",
        "# -- where the original weights come from",
        *(f"{_table(base)}\n" for base in bases.declared),
        *_commented(bases.others()),
        "# -- what was learned on top of a base (mlx-lm or PEFT layout)",
        *adapters,
        "# -- how weights are stored; declared once, used by any model",
        *(f"[variant.{name}]\n" + "\n".join(lines) + "\n" for name, lines in VARIANTS.items()),
        "# -- what to build: each model x variant is a target, MODEL_VARIANT",
        *(f"[model.{name}]\n{source}\nvariants = {quantized}\n" for name, source in models),
    ]
    return "\n".join(parts)


def free_name(name: str, used: set[str]) -> str:
    """`name`, or `name` with the first free number. Adds the result to `used`."""
    number, free = 1, name
    while free in used:
        number += 1
        free = f"{name}-{number}"
    used.add(free)
    return free


def _called(said: str, bases: Iterable[FoundBase]) -> FoundBase | None:
    """The base with the alias `said`, else the base with the last part of `said` as an alias, else None."""
    by_alias = {alias: base for base in reversed([*bases]) for alias in base.aliases}
    return by_alias.get(said) or by_alias.get(Path(said).name)


def _table(base: FoundBase) -> str:
    first, *rest = base.lines
    if base.unreadable:
        first += _UNREADABLE.format(base.unreadable)
    return "\n".join([f"[base.{base.name}]", first, *rest, *(_DEQUANTIZE if base.quantized else ())])


def _commented(bases: Iterable[FoundBase]) -> list[str]:
    tables = ["\n".join(f"# {line}" for line in _table(base).splitlines()) + "\n" for base in bases]
    return ["# also in Hugging Face's cache, used by nothing here:", *tables] if tables else []
