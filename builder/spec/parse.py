"""Parses artifacts.toml into a Spec. All problems of a file are found at once and raised as one SpecError."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from builder.console.words import listed, nearest, quoted, shown, suggestion
from builder.spec.adapters import adapter
from builder.spec.experts import experts
from builder.spec.fields import FIELDS
from builder.spec.gguf import gguf_kind
from builder.spec.learned import calibrated, goal, learned
from builder.spec.made_from import check_sources
from builder.spec.problems import Place, Problems
from builder.spec.publishing import publications
from builder.spec.quantizers import MODES
from builder.spec.remotes import remote
from builder.spec.seeds import SEED_OF, with_seeds
from builder.spec.settings import BuildSettings
from builder.spec.shape import Declared, Values, check_shape
from builder.spec.suites import check_searched, conditions, suite
from builder.spec.toml import read_toml
from builder.spec.types import (
    Base,
    BaseSource,
    Condition,
    GgufSource,
    HfSource,
    Model,
    Override,
    PathSource,
    Quantization,
    Spec,
    Variant,
)

_AFFINE = "affine"
# Patterns are compiled when they are needed: importing this module is part of every start.
_REPO = r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?"
_PACKAGE = r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*"


def parse_spec(file: Path, draft: bytes | None = None) -> Spec:
    """What `file` declares, or would declare if it held `draft`.

    Raises SpecError, which lists every problem by line.
    """
    file = Path(file)
    document = read_toml(file, draft)
    problems = Problems(document.label, document.lines)
    declared = with_seeds(check_shape(document.data, problems), problems)
    _check_references(declared, problems)
    _check_targets(declared, problems)
    _check_release(declared, problems)
    file = file.absolute()
    sources = {name: _source(v, file.parent, problems) for name, v in declared["base"].items()}
    variants = {name: _variant(name, v, problems) for name, v in declared["variant"].items()}
    suites = {name: suite(name, v, file.parent, problems) for name, v in declared["suite"].items()}
    require = {name: conditions(v, suites, problems) for name, v in declared["model"].items()}
    for name, values in declared["model"].items():
        check_searched(name, values, variants, suites, require[name], problems)
    store = _path(_setting(declared, "store", "path"), file.parent)
    folders = (file.parent, store)
    adapters = {n: adapter(n, v, folders, variants, problems) for n, v in declared["adapter"].items()}
    published = publications(declared, _target_names(declared), *folders, suites, problems)
    remotes = {name: remote(name, v, file.parent, problems) for name, v in declared["remote"].items()}
    problems.raise_any()
    return Spec(
        file=file,
        store=store,
        bases={n: _base(n, v, sources[n]) for n, v in declared["base"].items()},
        adapters=adapters,
        variants={n: _located(v, file.parent) for n, v in variants.items()},
        models={n: _model(n, v, declared, require[n]) for n, v in declared["model"].items()},
        suites=suites,
        build=BuildSettings(**{f.name: _setting(declared, "build", f.name) for f in FIELDS["build"].fields}),
        production=_setting(declared, "release", "production"),
        publications=published,
        published=_setting(declared, "release", "publish") or (),
        remotes=remotes,
        text=document.raw,
    )


def _located(variant: Variant, folder: Path) -> Variant:
    """The variant with the path of its calibration file made absolute."""
    if variant.calibration is None:
        return variant
    path = _path(str(variant.calibration), folder)
    if variant.learned is not None:
        return replace(variant, learned=replace(variant.learned, calibration=path))
    if variant.gguf is not None and variant.gguf.weighed is not None:
        weighed = replace(variant.gguf.weighed, calibration=path)
        return replace(variant, gguf=replace(variant.gguf, weighed=weighed))
    assert variant.calibrated is not None
    return replace(variant, calibrated=replace(variant.calibrated, calibration=path))


def _setting(declared: Declared, kind: str, key: str) -> Any:
    values = declared[kind].get("")
    default = next(field.default for field in FIELDS[kind].fields if field.name == key)
    return values.given.get(key, default) if values else default


def _path(text: str, folder: Path) -> Path:
    return folder / Path(text).expanduser()


# -- references and targets ----------------------------------------------------------------------------------


def _check_references(declared: Declared, problems: Problems) -> None:
    for kind, table in FIELDS.items():
        for field in table.fields:
            for values in declared[kind].values() if field.refers else ():
                given = values.given.get(field.name, ())
                names = enumerate(given) if isinstance(given, tuple) else [(None, given)]
                for index, name in names:
                    if name is not None and name not in declared[field.refers]:
                        place = _element(values, field.name, index)
                        problems.add(place, _undeclared(field.refers, name, declared[field.refers]))


def _element(values: Values, key: str, index: int | None) -> Place:
    return values.place.key(key) if index is None else values.place.key(key, index)


def _undeclared(kind: str, name: str, names: Mapping[str, Values]) -> str:
    what = f"{kind} {quoted(name)} is not declared"
    if close := nearest(name, names):
        return f"{what}; did you mean {quoted(close)}?"
    return f"{what} (declared: {listed(sorted(names))})" if names else f"{what}; add a table [{kind}.NAME]"


def _check_targets(declared: Declared, problems: Problems) -> None:
    """Checks that the name of each target is unique, so that model:NAME and clean:NAME mean one thing."""
    made: dict[str, tuple[str, str, str]] = {}
    for model, values in declared["model"].items():
        for index, variant in enumerate(values.given.get("variants", ())):
            if variant is None:
                continue
            check_sources(variant, values, declared, problems)
            name = f"{model}_{variant}"
            other, other_model, other_variant = made.setdefault(name.lower(), (name, model, variant))
            if (other_model, other_variant) == (model, variant):
                continue
            by = f"(model {quoted(other_model)}, variant {quoted(other_variant)})"
            same = "is made twice" if other == name else f"and {quoted(other)} differ only by letter case"
            problems.add(
                values.place.key("variants", index), f"target {quoted(name)} {same} {by}; rename one"
            )
    for kind in ("model", "variant"):
        for name, values in declared[kind].items():
            if (target := made.get(name.lower())) and target[0] == name:
                by = f"model {quoted(target[1])}, variant {quoted(target[2])}"
                problems.add(values.place, f"the name is also the name of a target ({by}); rename one")


def _check_release(declared: Declared, problems: Problems) -> None:
    values = declared["release"].get("")
    name = values.get("production") if values else None
    if values and name is not None and name not in (made := _target_names(declared)):
        what = f"production = {quoted(name)} is not a target{suggestion(name, made)}"
        problems.add(values.place.key("production"), what)
    if values and (variant := declared["variant"].get("production")):
        problems.add(variant.place, "the name is also the name of the release; rename it")


def _target_names(declared: Declared) -> list[str]:
    return [f"{m}_{v}" for m, each in declared["model"].items() for v in each.given.get("variants", ())]


def _model(name: str, values: Values, declared: Declared, require: tuple[Condition, ...]) -> Model:
    adapter = values.get("adapter")
    base = values.get("base") if adapter is None else declared["adapter"][adapter].get("base")
    suites, seed_of = values.given.get("suites", ()), values.given.get(SEED_OF)
    return Model(name, base, adapter, values.get("variants"), suites, require, seed_of)


def _base(name: str, values: Values, source: BaseSource) -> Base:
    flags = {key: values.given.get(key, False) for key in ("dequantize", "trust_remote_code")}
    return Base(name, source, **flags)


def _source(values: Values, folder: Path, problems: Problems) -> BaseSource:
    """Where a base comes from. After a problem the value does not matter, because the parse fails."""
    if text := values.get("gguf"):
        return _gguf(text, folder, values.place.key("gguf"), problems)
    if repo := values.get("hf"):
        if not re.fullmatch(_REPO, repo) or ".." in repo:
            what = f'hf = {quoted(repo)} is not the name of a repository; write "org/name"'
            problems.add(values.place.key("hf"), what)
        return HfSource(repo, values.get("revision") or "")
    return PathSource(_path(values.get("path") or "", folder))


def _gguf(text: str, folder: Path, place: Place, problems: Problems) -> GgufSource:
    """The source for `package:file` or a path. A path with a colon must begin with a folder: ./a:b.gguf."""
    package, colon, inside = text.partition(":")
    if not colon or "/" in package:
        return GgufSource(text, None, _path(text, folder))
    if not re.fullmatch(_PACKAGE, package):
        fixed = package.replace("-", "_")
        hint = f"did you mean {quoted(fixed)}?" if re.fullmatch(_PACKAGE, fixed) else "a path begins with ./"
        problems.add(place, f"gguf: {quoted(package)} is not the name of a Python package; {hint}")
    file = PurePosixPath(inside)
    if not inside or file.is_absolute() or ".." in file.parts:
        problems.add(place, f"gguf = {quoted(text)} names no file inside the package; write package:file")
    return GgufSource(text, package, Path(inside))


# -- variants ------------------------------------------------------------------------------------------------


def _variant(name: str, values: Values, problems: Problems) -> Variant:
    recipe = values.get("recipe")
    quantized = any(values.says(key) for key in ("bits", "mode", "recipe", "method"))
    quantized = quantized and not values.says("start")  # then it has the bits of that variant
    quantization = _quantization(values, None, problems) if quantized else None
    made = learned(values, quantization, problems) if values.says("method") else None
    overrides = []
    for pattern, entry in (values.get("overrides") or {}).items():
        how = entry and quantization and _override(entry, quantization, recipe, problems)
        overrides.append(Override(pattern, how))
    return Variant(
        name,
        dtype=values.get("dtype"),
        quantization=None if recipe else quantization,
        recipe=recipe,
        group_size=quantization.group_size if quantization else _group_size(values, problems),
        overrides=tuple(overrides),
        intermediate=values.given.get("intermediate", False),
        learned=made,
        goal=goal(values, problems),
        gguf=gguf_kind(values, problems),
        experts=experts(values, problems),
        calibrated=None if values.says("method") or values.says("gguf") else calibrated(values, problems),
    )


def _group_size(values: Values, problems: Problems) -> int:
    """The group size of a variant whose bits are given to each weight later."""
    _, sizes, _, default = MODES[_AFFINE]
    size: int = values.given.get("group_size", default)
    if values.says("target") and size not in sizes:
        what = f"group_size = {shown(size)} is not possible with target (possible: {listed(sizes)})"
        problems.add(values.place.key("group_size"), what)
    return size


def _override(
    entry: Values, around: Quantization, recipe: str | None, problems: Problems
) -> Quantization | None:
    if recipe and not entry.says("bits") and not entry.says("mode"):
        what = f"bits are missing: recipe {quoted(recipe)} uses several bits; add, for example, bits = 8"
        problems.add(entry.place, what)
    return _quantization(entry, around, problems)


def _quantization(values: Values, around: Quantization | None, problems: Problems) -> Quantization | None:
    """What a table says about quantization. None after a problem.

    What the table leaves out comes from `around` where the mode allows that, else from the mode's defaults.
    """
    if values.bad & {"bits", "group_size", "mode"}:
        return None
    mode = values.get("mode") or (around.mode if around else _AFFINE)
    all_bits, all_sizes, bits, group_size = MODES[mode]
    if around:
        bits = around.bits if around.bits in all_bits else bits
        group_size = around.group_size if around.group_size in all_sizes else group_size
    bits = values.given.get("bits", bits)
    group_size = values.given.get("group_size", group_size)
    wrong = [("bits", bits, all_bits), ("group_size", group_size, all_sizes)]
    wrong = [each for each in wrong if each[1] not in each[2]]
    for key, value, possible in wrong:
        what = f"{key} = {shown(value)} is not possible in mode {quoted(mode)} (possible: {listed(possible)})"
        problems.add(values.place.key(key), what + _other_mode(key, value, values))
    return None if wrong else Quantization(bits, group_size, mode)


def _other_mode(key: str, value: int, values: Values) -> str:
    """`; add mode = "affine"` when the table gives no mode and another mode has these bits, else nothing."""
    if key != "bits" or values.says("mode"):
        return ""
    modes = [mode for mode, (all_bits, _, _, _) in MODES.items() if value in all_bits]
    return f"; add mode = {quoted(modes[0])}" if modes else ""
