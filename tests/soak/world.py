"""A small world and what a person does in it: checkouts with a declaration each, their sources, their stores.

Everything lies in one folder:

  pool/      sources that never change, by name; so a name says what the bytes are
  live/      sources that a person replaces: what lies there now is remembered by the name in the pool
  one/ two/  checkouts that share store/; own/ has a store of its own
  notes/ and files beside and inside the stores: a person's own, which nothing may touch
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from blake3 import blake3

from builder.project.project import Project
from builder.store import views
from tests.soak import sources

Content = tuple[object, ...]  # everything that a target is made of, by names of the pool
Settings = dict[str, object]

EDITS = ("eos", "config", "chat", "vocabulary", "theta", "dtype")
FOLDERS = ("x", "x-dtype", "y", *(f"x-{edit}" for edit in EDITS if edit != "dtype"))
GGUFS = ("x.gguf", "y.gguf")
ADAPTERS = ("a1", "a2", "a3")
TEXTS = ("t1.txt", "t2.txt", "t2.jsonl")
LIVE = {"folder": ("base", FOLDERS), "gguf": ("base.gguf", GGUFS), "adapter": ("adapter", ADAPTERS)}
LIVE["text"] = ("text.txt", TEXTS[:2])
SHARED, OWN = ("one", "two"), "own"
CHECKOUTS = (*SHARED, OWN)


_OPEN: list[Project] = []


def load(file: Path) -> Project:
    """As a new command does it."""
    _OPEN.append(Project.load(file))
    return _OPEN[-1]


def close() -> None:
    """As those commands leave it when they end: nobody has the database of a store open."""
    while _OPEN:
        _OPEN.pop().cache.close()


def make_pool(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for seed, name in enumerate(("x", "y"), start=1):
        sources.write_folder(folder / name, seed)
        sources.write_gguf(folder / f"{name}.gguf", 10 + seed)
    for edit in EDITS:
        sources.edit_folder(folder / "x", folder / f"x-{edit}", edit)
    for seed, (name, layers) in enumerate(zip(ADAPTERS, ((0, 1), (1,), (1,)), strict=True)):
        sources.write_adapter(folder / name, 100 * seed, layers)
    for name in TEXTS:
        (folder / name).write_text(json.dumps({"text": name[:2]}) + "\n")
    return folder


@dataclass
class Declaration:
    """An artifacts.toml as a person thinks of it. Sources are paths below the world, such as `pool/x`."""

    store: str | None
    bases: dict[str, str]
    adapters: dict[str, tuple[str, str]]  # name -> base, source
    variants: dict[str, Settings]
    models: dict[str, tuple[str, list[str]]]  # name -> base or adapter, variants
    production: str | None = None

    def text(self, at: str = "..") -> str:
        """`at`: the world, from the folder of the declaration."""
        lines = [f'[store]\npath = "{self.store}"\n'] if self.store else []
        for name, place in self.bases.items():
            kind = "gguf" if place.endswith(".gguf") else "path"
            lines.append(f'[base.{name}]\n{kind} = "{at}/{place}"\n')
        for name, (base, place) in self.adapters.items():
            lines.append(f'[adapter.{name}]\nbase = "{base}"\npath = "{at}/{place}"\n')
        for name, settings in self.variants.items():
            lines.append(
                f"[variant.{name}]\n" + "".join(f"{k} = {_toml(v, at)}\n" for k, v in settings.items())
            )
        for name, (of, variants) in self.models.items():
            kind = "adapter" if of in self.adapters else "base"
            lines.append(f'[model.{name}]\n{kind} = "{of}"\nvariants = {json.dumps(variants)}\n')
        if self.production:
            lines.append(f'[release]\nproduction = "{self.production}"\n')
        return "\n".join(lines)

    @property
    def targets(self) -> dict[str, tuple[str, str]]:
        """target -> model, variant"""
        return {f"{m}_{v}": (m, v) for m, (_, variants) in self.models.items() for v in variants}

    def needed(self, model: str, variant: str) -> list[str]:
        """The variants that making one takes."""
        source = self.variants[variant].get("from")
        return [variant] if source is None else [str(source), variant]

    def rename_variant(self, old: str, new: str) -> None:
        self.variants = {new if name == old else name: how for name, how in self.variants.items()}
        for how in self.variants.values():
            if how.get("from") == old:
                how["from"] = new
        for _, variants in self.models.values():
            variants[:] = [new if name == old else name for name in variants]

    def rename_model(self, old: str, new: str) -> None:
        self.models = {new if name == old else name: what for name, what in self.models.items()}


def _toml(value: object, at: str) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f'"{k}" = {_toml(v, at)}' for k, v in value.items()) + " }"
    if isinstance(value, str) and value.startswith(("pool/", "live/")):
        return json.dumps(f"{at}/{value}")
    return json.dumps(value)


def first_declaration(store: str | None) -> Declaration:
    return Declaration(
        store,
        {"b": "live/base", "g": "live/base.gguf"},
        {"a": ("b", "live/adapter"), "c": ("g", "pool/a2")},
        {
            "f16": {"dtype": "float16", "intermediate": True},
            "v4": {"bits": 4, "group_size": 32},
            "v8": {"bits": 8, "group_size": 32},
            "q": {
                "method": "dwq",
                "from": "f16",
                "calibration": "live/text.txt",
                "bits": 4,
                "group_size": 32,
            },
        },
        {"m": ("a", ["f16", "v4", "v8", "q"]), "n": ("c", ["f16", "v4", "q"]), "k": ("b", ["v4", "v8"])},
    )


@dataclass
class World:
    root: Path
    pool: Path
    declared: dict[str, Declaration] = field(default_factory=dict)
    folders: dict[str, Path] = field(default_factory=dict)
    live: dict[str, str] = field(default_factory=dict)  # name in live/ -> name in the pool
    foreign: dict[str, object] = field(default_factory=dict)

    @classmethod
    def make(cls, root: Path, pool: Path) -> World:
        world = cls(root, pool)
        root.mkdir(parents=True)
        (root / "pool").symlink_to(pool)
        (root / "live").mkdir()
        for kind, (_, names) in LIVE.items():
            world.put(kind, names[0], "rename")
        for name in CHECKOUTS:
            world.folders[name] = root / name
            world.folders[name].mkdir()
            world.declared[name] = first_declaration("../store" if name in SHARED else None)
            world.write(name)
            world.open(name)
        world._scatter()
        world.foreign = world.look()
        return world

    # -- what a person has beside the stores and in them ----------------------------------------------------

    def _scatter(self) -> None:
        notes = ["notes", "tmp", "models/m_v4", "blobs", "checkouts", "one", "own/models"]
        for store in ("store", "own/store"):
            notes += [f"{store}/tmp", f"{store}/bases/mine", f"{store}/blobs/mine", f"{store}/quarantine"]
        for place in (*notes, "own/store/models/mine"):
            (self.root / place).mkdir(parents=True, exist_ok=True)
            (self.root / place / "keep.txt").write_text(place)

    def look(self) -> dict[str, object]:
        """All that is not ours: each file with what tells whether it was touched, by path."""
        found: dict[str, object] = {}
        for place in self._foreign_files():
            status = place.lstat()
            found[str(place.relative_to(self.root))] = (
                status.st_ino,
                status.st_size,
                status.st_mtime_ns,
                status.st_ctime_ns,
                status.st_nlink,
            )
        return found

    def _foreign_files(self) -> Iterator[Path]:
        yield from sorted(self.root.rglob("keep.txt"))
        for folder in (self.pool, self.root / "live"):
            for top, _, names in os.walk(folder):
                for name in sorted(names):
                    place = Path(top, name)
                    if place.is_relative_to(self.root):
                        yield place
                    else:
                        yield self.root / "pool" / place.relative_to(self.pool)

    # -- declarations ---------------------------------------------------------------------------------------

    def write(self, name: str) -> None:
        file = self.folders[name] / "artifacts.toml"
        text = self.declared[name].text()
        if not file.exists() or file.read_text() != text:
            file.write_text(text)

    def open(self, name: str) -> Project:
        return load(self.folders[name] / "artifacts.toml")

    def store(self, name: str) -> Path:
        return self.root / "store" if name in SHARED else self.folders[name] / "store"

    def sharing(self, name: str) -> tuple[str, ...]:
        """The other checkouts of a store."""
        return tuple(other for other in SHARED if other != name) if name in SHARED else ()

    # -- sources --------------------------------------------------------------------------------------------

    def put(self, kind: str, content: str, how: str) -> None:
        """Replace a live source. how: rename, write (in place), keep (in place, and the times set back)."""
        name = LIVE[kind][0]
        place, new = self.root / "live" / name, self.pool / content
        if how == "rename" or not place.exists():
            staged = self.root / "staged"
            shutil.copytree(new, staged) if new.is_dir() else shutil.copyfile(new, staged)
            if place.is_dir():
                shutil.rmtree(place)
            staged.rename(place)
        else:
            _overwrite(new, place, keep=how == "keep")
        self.live[name] = content
        if self.foreign:
            self.foreign = self.look()

    def touch(self) -> None:
        for file in (self.root / "live").rglob("*"):
            os.utime(file)
        self.foreign = self.look()

    def content_of(self, place: object) -> str:
        parent, name = str(place).split("/")
        return name if parent == "pool" else self.live[name]

    # -- what targets are made of ---------------------------------------------------------------------------

    def content(self, name: str, target: str) -> Content:
        """Everything that can matter to a target's bytes, and no name that a person gave."""
        declared = self.declared[name]
        model, variant = declared.targets[target]
        of = declared.models[model][0]
        base, adapter = declared.adapters.get(of, (of, None))
        settings = []
        for one in declared.needed(model, variant):
            how = {k: v for k, v in declared.variants[one].items() if k not in ("from", "intermediate")}
            if "calibration" in how:
                how["calibration"] = self.content_of(how["calibration"])
            settings.append(json.dumps(how, sort_keys=True))
        worn = self.content_of(adapter) if adapter else None
        return (self.content_of(declared.bases[base]), worn, *settings)

    def sources_of(self, name: str) -> object:
        """What a checkout declares now, and what lies there."""
        return self.declared[name].text(), tuple(sorted(self.live.items()))


def _overwrite(new: Path, place: Path, *, keep: bool) -> None:
    if new.is_dir():
        for old in place.iterdir():
            if not (new / old.name).exists():
                old.unlink()
    for file in sorted(new.iterdir()) if new.is_dir() else [new]:
        there = place / file.name if new.is_dir() else place
        if there.exists() and there.read_bytes() == file.read_bytes():
            continue
        before = there.stat() if there.exists() else None
        there.write_bytes(file.read_bytes())
        if keep and before is not None:
            os.utime(there, ns=(before.st_atime_ns, before.st_mtime_ns))


Files = Mapping[str, str]  # name -> digest


def files_of(view: Path) -> Files:
    """What mlx_lm reads of a view, byte for byte."""
    own = (views.MANIFEST, views.CARD, views.NAME)
    return {p.name: blake3(p.read_bytes()).hexdigest() for p in view.iterdir() if p.name not in own}


@dataclass
class Fresh:
    """Clean builds in empty stores, one for each content."""

    root: Path
    pool: Path
    known: dict[Content, Files] = field(default_factory=dict)

    def files(self, content: Content, build: Callable[[Path, str], object]) -> Files:
        if content not in self.known:
            self.known[content] = self._build(content, build)
        return self.known[content]

    def _build(self, content: Content, build: Callable[[Path, str], object]) -> Files:
        base, adapter, *settings = content
        variants: dict[str, Settings] = {}
        for number, text in enumerate(settings):
            how = json.loads(str(text))
            if "calibration" in how:
                how["calibration"] = f"pool/{how['calibration']}"
                how["from"] = "s0"
            variants[f"s{number}"] = how
        wears = {"z": ("z", f"pool/{adapter}")} if adapter else {}
        declaration = Declaration(None, {"z": f"pool/{base}"}, wears, variants, {"z": ("z", list(variants))})
        folder = self.root / "fresh"
        (folder / "checkout").mkdir(parents=True)
        try:
            (folder / "pool").symlink_to(self.pool)
            (folder / "checkout" / "artifacts.toml").write_text(declaration.text())
            target = f"z_s{len(settings) - 1}"
            build(folder / "checkout" / "artifacts.toml", target)
            return files_of(folder / "checkout/store/models" / target)
        finally:
            shutil.rmtree(folder)
