"""A person at work, as a state machine. Every step is something that people do.

No step may show wrong weights, do more or less than the plan said, or touch what is not the program's. After
each step and in every checkout, a target that status calls built equals, byte for byte, a build of the same
declaration in an empty store.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any, ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from builder.build.intermediates import prune_intermediates
from builder.console.events import silent
from builder.project.forecast import Forecast
from builder.release import production
from builder.release.delivery import clean
from builder.spec.quantizers import METHOD_SETTINGS
from builder.store import views
from builder.store.care.gc import Policy
from builder.store.layout import homes
from tests.conftest import PATIENCE
from tests.soak import person
from tests.soak.world import (
    ADAPTERS,
    CHECKOUTS,
    FOLDERS,
    GGUFS,
    LIVE,
    OWN,
    TEXTS,
    Fresh,
    World,
    close,
    files_of,
)

PRELOAD = ["mlx.core", "mlx_lm.utils", "mlx_lm.models.llama", "tests.soak.person", "builder.engine.stream"]
PRELOAD += [
    "builder.engine.loading",
    "builder.engine.inspect",
    "builder.engine.block",
    "builder.engine.survival",
]

checkouts = st.sampled_from(CHECKOUTS)
numbers = st.integers(0, 9999)
PLAIN = st.fixed_dictionaries(
    {"bits": st.sampled_from([2, 4, 8]), "group_size": st.sampled_from([32, 64])},
    optional={
        "dtype": st.sampled_from(["float16", "bfloat16", "float32"]),
        "overrides": st.sampled_from(
            [
                {"model.embed_tokens": {"bits": 8}},
                {"model.layers.0.*": {"bits": 3}},
                {"model.layers.*.mlp.*": False},
                {"lm_head": {"bits": 6}},
            ]
        ),
    },
)
WIDE = st.sampled_from([{"dtype": d, "intermediate": True} for d in ("float16", "bfloat16", "float32")])


def declarable(settings: dict[str, Any]) -> dict[str, Any]:
    """Without what the method does not read, and without a target that its bits exceed."""
    least = settings["bits"] + 32 / settings["group_size"]
    known = {"method", "calibration", "bits", "group_size", *METHOD_SETTINGS[settings["method"]]}
    if settings.get("target_bpw", least) < least:
        known.discard("target_bpw")
    return {name: value for name, value in settings.items() if name in known}


LEARNED = st.fixed_dictionaries(
    {
        "method": st.sampled_from(["dwq", "gptq", "dynamic"]),
        "calibration": st.sampled_from(["live/text.txt", *(f"pool/{text}" for text in TEXTS)]),
        "bits": st.sampled_from([2, 4]),
        "group_size": st.sampled_from([32, 64]),
    },
    optional={
        "seed": st.sampled_from([1, 2]),
        "samples": st.sampled_from([4, 8]),
        "learning_rate": st.sampled_from([1e-5, 1e-4]),
        "target_bpw": st.sampled_from([4.5, 6.0]),
    },
).map(declarable)


class Person(RuleBasedStateMachine):
    """One life. The class carries what all lives share: the pool of sources, the clean builds, the counts."""

    root: ClassVar[Path]
    pool: ClassVar[Path]
    fresh: ClassVar[Fresh]
    children: ClassVar[bool] = True
    counts: ClassVar[dict[str, int]]
    life: ClassVar[int] = 0

    def __init__(self) -> None:
        super().__init__()
        type(self).life += 1
        self.world = World.make(self.root / f"life{self.life}", self.pool)
        self.damaged: set[Path] = set()  # stores in which verify may find something
        self.ran: dict[str, object] = {}  # checkout -> what it declared when all of it was last built
        self.touched: set[Path] = (
            set()
        )  # stores that a step may have changed, or what their checkouts declare

    def teardown(self) -> None:
        shutil.rmtree(self.world.root)

    def note(self, what: str, *which: str) -> None:
        """Counts a step. which: the checkouts that it is about; none: it may change what all of them see."""
        close()
        self.counts[what] = self.counts.get(what, 0) + 1
        self.touched |= {self.world.store(name) for name in which or CHECKOUTS}

    # -- building -------------------------------------------------------------------------------------------

    @initialize()
    def first(self) -> None:
        self.run("one")

    @rule(which=checkouts, number=numbers, some=st.integers(0, 3))
    def build(self, which: str, number: int, some: int) -> None:
        self.note("build", which)
        names = list(self.world.declared[which].targets)
        self.run(which, [names[(number + 7 * i) % len(names)] for i in range(some)])

    def run(self, which: str, names: Collection[str] = ()) -> Forecast:
        """A build does what the plan said, and everything is there then."""
        file = self.file(which)
        names = list(dict.fromkeys(names))
        spare = person.dropped(self.world.open(which))
        said, ran = person.run(file, names)
        assert not said.prepare and not said.refused, said
        planned, steps = sum(p.make for p in said.passes), {step.target for step in said.learned}
        # What was dropped comes back, unasked, where something else turns out to have the same bytes: base x
        # and base x-theta have the same weights under different keys. No plan can know that.
        least = planned - spare.blocks
        assert least <= ran.blocks <= planned, f"{which} {names}: ran {ran}, but the plan said {said}"
        exact = ran.blocks != planned or ran.nbytes == sum(p.write for p in said.passes)
        assert exact, f"{which} {names}: wrote {ran.nbytes}, but the plan said {said}"
        did = ran.steps
        fair = steps >= set(did) and len(did) == len(set(did)) and len(steps) - spare.steps <= len(did)
        assert fair, f"{which} {names}: ran {did}, the plan said {sorted(steps)}"
        self.require_built(which, names)
        if not names:
            self.ran[which] = self.world.sources_of(which)
        return said

    def require_built(self, which: str, names: Collection[str]) -> None:
        project = self.world.open(which)
        there = set(person.built(project))
        for target in person.chosen(project, list(names)):
            variant = project.spec.target(target).variant
            assert target in there, f"{which}: {target} is not built after a build"
            assert not variant.intermediate or target in names

    def edited(self, which: str, build: bool) -> None:
        self.world.write(which)
        if build:
            self.run(which)

    def file(self, which: str) -> Path:
        return self.world.folders[which] / "artifacts.toml"

    # -- editing the declaration and the sources ------------------------------------------------------------

    @rule(which=checkouts, base=st.sampled_from("bg"), number=numbers, build=st.booleans())
    def point_a_base_elsewhere(self, which: str, base: str, number: int, build: bool) -> None:
        self.note("point a base elsewhere", which)
        places = ["live/base", "live/base.gguf", *(f"pool/{name}" for name in (*FOLDERS, *GGUFS))]
        self.world.declared[which].bases[base] = places[number % len(places)]
        self.edited(which, build)

    @rule(which=checkouts, number=numbers)
    def switch_a_gguf_there_and_back(self, which: str, number: int) -> None:
        """The first fault: a new variant of a base that was switched back."""
        self.note("switch a GGUF there and back", which)
        declared = self.world.declared[which]
        for place in ("pool/x.gguf", "pool/y.gguf", "pool/x.gguf"):
            declared.bases["g"] = place
            self.edited(which, build=number % 4 != 0)
            self.what_is_built_is_right(which)
        plain = [v for v in declared.variants.values() if "bits" in v and "method" not in v]
        plain[number % len(plain)]["bits"] = (2, 3, 4, 8)[number % 4]
        self.edited(which, build=True)

    @rule(
        kind=st.sampled_from(sorted(LIVE)),
        number=numbers,
        how=st.sampled_from(["rename", "write", "keep"]),
        which=st.none() | checkouts,
    )
    def replace_a_source(self, kind: str, number: int, how: str, which: str | None) -> None:
        self.note("replace a source")
        names = LIVE[kind][1]
        self.world.put(kind, names[number % len(names)], how)
        if which:
            self.run(which)

    @rule(which=checkouts)
    def touch(self, which: str) -> None:
        self.note("touch")
        self.world.touch()
        done = self.ran.get(which) == self.world.sources_of(which)
        said = self.run(which)
        assert not done or not (said.passes or said.learned), f"a touch makes {said}"

    @rule(which=checkouts, name=st.sampled_from("ac"), adapter=st.sampled_from(ADAPTERS), build=st.booleans())
    def wear_another_adapter(self, which: str, name: str, adapter: str, build: bool) -> None:
        self.note("wear another adapter", which)
        adapters = self.world.declared[which].adapters
        adapters[name] = (adapters[name][0], f"pool/{adapter}")
        self.edited(which, build)

    @rule(which=checkouts, number=numbers, settings=PLAIN, build=st.booleans())
    def edit_a_variant(self, which: str, number: int, settings: dict[str, object], build: bool) -> None:
        self.note("edit a variant", which)
        self.set_variant(which, number, "bits", settings, build)

    @rule(which=checkouts, settings=WIDE, build=st.booleans())
    def edit_the_intermediate(self, which: str, settings: dict[str, object], build: bool) -> None:
        self.note("edit the intermediate", which)
        self.set_variant(which, 0, "intermediate", settings, build)

    @rule(which=checkouts, settings=LEARNED, build=st.booleans())
    def edit_the_learned_variant(self, which: str, settings: dict[str, object], build: bool) -> None:
        self.note("edit the learned variant", which)
        self.set_variant(which, 0, "method", settings, build)

    @rule(which=checkouts, number=numbers, build=st.booleans())
    def ask_for_the_dtype_that_it_has(self, which: str, number: int, build: bool) -> None:
        """One of the faults of keys: config.json says a dtype only where the declaration does."""
        self.note("ask for the dtype that it has", which)
        names = [n for n, how in self.world.declared[which].variants.items() if "method" not in how]
        how = self.world.declared[which].variants[names[number % len(names)]]
        if build:
            self.world.declared[which].bases["b"] = "pool/x-dtype"
            self.edited(which, build)
        if "dtype" in how and not how.get("intermediate"):
            del how["dtype"]
        else:
            how["dtype"] = "float16"
        self.edited(which, build)

    def set_variant(
        self, which: str, number: int, like: str, settings: dict[str, object], build: bool
    ) -> None:
        variants = self.world.declared[which].variants
        plain = {n for n, how in variants.items() if "bits" in how and "method" not in how}
        names = sorted(plain) if like == "bits" else [n for n, how in variants.items() if like in how]
        name = names[number % len(names)]
        source = {"from": variants[name]["from"]} if "from" in variants[name] else {}
        variants[name] = {**settings, **source}
        self.edited(which, build)

    @rule(which=checkouts, number=numbers, build=st.booleans())
    def rename_a_variant(self, which: str, number: int, build: bool) -> None:
        self.note("rename a variant", which)
        declared = self.world.declared[which]
        names = list(declared.variants)
        spare = [name for name in ("f16", "v4", "v8", "q", "w1", "w2") if name not in names]
        declared.rename_variant(names[number % len(names)], spare[number % len(spare)])
        self.edited(which, build)

    @rule(which=checkouts, number=numbers, build=st.booleans())
    def rename_a_model(self, which: str, number: int, build: bool) -> None:
        self.note("rename a model", which)
        declared = self.world.declared[which]
        names = list(declared.models)
        spare = [name for name in ("m", "n", "k", "p") if name not in names]
        declared.rename_model(names[number % len(names)], spare[0])
        self.edited(which, build)

    @rule(which=checkouts, number=numbers, build=st.booleans())
    def list_other_variants(self, which: str, number: int, build: bool) -> None:
        self.note("list other variants", which)
        declared = self.world.declared[which]
        _, listed = list(declared.models.values())[number % len(declared.models)]
        wide = next(name for name, how in declared.variants.items() if how.get("intermediate"))
        bits = number // 3
        listed[:] = [name for place, name in enumerate(declared.variants) if bits >> place & 1] or [wide]
        if wide not in listed and any("from" in declared.variants[name] for name in listed):
            listed.insert(0, wide)
        self.edited(which, build)

    @rule(which=checkouts, number=numbers, base=st.sampled_from("bg"), build=st.booleans())
    def move_a_model(self, which: str, number: int, base: str, build: bool) -> None:
        """To another base, an adapter, or none."""
        self.note("move a model", which)
        declared = self.world.declared[which]
        name = list(declared.models)[number % len(declared.models)]
        of = ("a", "c", base)[number % 3]
        declared.models[name] = (of, declared.models[name][1])
        if of in declared.adapters:
            declared.adapters[of] = (base, declared.adapters[of][1])
        self.edited(which, build)

    @rule(which=checkouts, build=st.booleans())
    def move_the_checkout(self, which: str, build: bool) -> None:
        self.note("move the checkout", which)
        former = self.world.folders[which]
        new = former.with_name(which if former.name != which else f"{which}-moved")
        former.rename(new)
        self.world.folders[which] = new
        self.world.foreign = self.world.look()
        for stores in (self.damaged, self.touched):  # a store inside the folder moves with it
            moved = {s for s in stores if s.is_relative_to(former)}
            stores -= moved
            stores |= {new / store.relative_to(former) for store in moved}
        if build:
            done = self.ran.get(which) == self.world.sources_of(which)
            said = self.run(which)
            assert not done or not (said.passes or said.learned), f"a move makes {said}"

    # -- cleaning -------------------------------------------------------------------------------------------

    @rule(which=checkouts, number=numbers, some=st.integers(1, 3))
    def clean(self, which: str, number: int, some: int) -> None:
        self.note("clean", which)
        names = list(self.world.declared[which].targets)
        gone = {names[(number + 5 * i) % len(names)] for i in range(some)}
        before = self.standing(which)
        clean(self.world.open(which), sorted(gone), silent)
        self.still(which, {key for key in before if key[0] != which or key[1] not in gone})

    @rule(which=checkouts)
    def prune(self, which: str) -> None:
        self.note("prune", which)
        before = self.standing(which)
        prune_intermediates(self.world.open(which), silent)
        spec = self.world.open(which).spec
        self.still(
            which, {key for key in before if key[0] != which or not spec.target(key[1]).variant.intermediate}
        )

    @rule(
        which=checkouts,
        full=st.booleans(),
        results=st.booleans(),
    )
    def gc(self, which: str, full: bool, results: bool) -> None:
        self.note("gc", which)
        before = self.standing(which)
        policy = Policy(grace_s=0.0, results=results, max_bytes=0 if full else None)
        person.collect(self.file(which), policy)
        self.still(which, before)

    def standing(self, which: str) -> set[tuple[str, str]]:
        """What stays whatever this checkout cleans: its targets, and of others what they have registered."""
        found = {(which, target) for target in person.built(self.world.open(which))}
        for other in self.world.sharing(which):
            if self.ran.get(other) == self.world.sources_of(other):
                found |= {(other, target) for target in person.built(self.world.open(other))}
        return found

    def still(self, which: str, before: set[tuple[str, str]]) -> None:
        for name in (which, *self.world.sharing(which)):
            there = {(name, target) for target in person.built(self.world.open(name))}
            lost = {key for key in before if key[0] == name} - there
            assert not lost, f"{which} took away {sorted(lost)}"

    # -- releasing ------------------------------------------------------------------------------------------

    @rule(which=checkouts, number=numbers)
    def release(self, which: str, number: int) -> None:
        self.note("release", which)
        declared = self.world.declared[which]
        names = list(declared.targets)
        declared.production = names[number % len(names)]
        self.world.write(which)
        self.run(which, [declared.production])
        production.release(self.world.open(which), silent)
        store = self.world.open(which).store
        assert files_of(store.models / "production") == files_of(store.models / declared.production)
        declared.production = None
        self.world.write(which)

    # -- damage ---------------------------------------------------------------------------------------------

    def parts(self, which: str, kind: str) -> list[Path]:
        root = self.world.store(which)
        store = self.world.open(which).store
        match kind:
            case "blob":
                found = [p for p in root.glob("blobs/??/*") if len(p.name) == 64]
            case "record":
                found = list(root.glob("actions/??/*"))
            case "manifest":
                found = list(root.glob("targets/*.toml"))
            case "view":
                found = [p for h in homes(store) for p in h.models.glob("*") if p.name != "production"]
            case "import":
                found = list((root / "bases").iterdir())
            case "state":
                found = list(root.glob("state.sqlite*"))
            case "roots":
                found = list(root.glob("roots/*.json"))
            case _:
                found = [p for p in root.glob("locks/*") if p.is_file()]
        return sorted(p for p in found if not p.is_dir() or views.is_view(p))

    @rule(
        which=checkouts,
        kind=st.sampled_from(
            ["blob", "record", "manifest", "view", "view", "import", "state", "roots", "locks"]
        ),
        number=numbers,
        some=st.integers(1, 5),
        build=st.booleans(),
    )
    def delete(self, which: str, kind: str, number: int, some: int, build: bool) -> None:
        self.note(f"delete {kind}", which)
        found = self.parts(which, kind)
        for i in range(min(some, len(found))):
            place = found[(number + 11 * i) % len(found)]
            if place.is_dir():
                shutil.rmtree(place)
            else:
                place.unlink(missing_ok=True)
        self.damage(which)
        if build:
            self.run(which)

    @rule(
        which=checkouts,
        kind=st.sampled_from(["blob", "record", "manifest", "view", "import", "state"]),
        number=numbers,
        how=st.sampled_from(["flip", "cut", "garbage", "empty"]),
        build=st.booleans(),
    )
    def spoil(self, which: str, kind: str, number: int, how: str, build: bool) -> None:
        """A file is not what it was, as an editor or a bad disk leaves it."""
        self.note(f"spoil {kind}", which)
        found = self.parts(which, kind)
        if not found:
            return
        place = found[number % len(found)]
        if place.is_dir():
            files = sorted(p for p in place.iterdir() if p.name != views.MANIFEST)
            place = files[number % len(files)]
        data = bytearray(place.read_bytes())
        match how:
            case "flip" if data:
                data[number % len(data)] ^= 1
            case "cut":
                data = data[: len(data) // 2]
            case "garbage":
                data = bytearray(b"\xff" * len(data))
            case "empty":
                data = bytearray()
        place.chmod(0o644)
        place.write_bytes(data)
        self.damage(which)
        if build:
            self.run(which)

    @rule(which=checkouts, number=numbers)
    def a_bit_rots(self, which: str, number: int) -> None:
        """Bytes change and nothing tells of it: only verify can see that, and repair heals it."""
        self.note("a bit rots", which)
        self.heal(which)
        project = self.world.open(which)
        blobs = self.parts(which, "blob")
        if not blobs:
            return
        place = blobs[number % len(blobs)]
        before = place.stat()
        data = bytearray(place.read_bytes())
        if not data:
            return
        data[number % len(data)] ^= 1
        place.chmod(0o644)
        place.write_bytes(data)
        place.chmod(0o444)
        os.utime(place, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert not person.look(project).is_clean, f"verify does not see that {place} has changed"
        self.damage(which)
        self.heal(which)

    @precondition(lambda self: self.damaged)
    @rule(which=checkouts)
    def verify_and_repair(self, which: str) -> None:
        self.note("verify --repair", which)
        self.heal(which)

    def damage(self, which: str) -> None:
        self.damaged.add(self.world.store(which))
        for name in (which, *self.world.sharing(which)):
            self.ran.pop(name, None)

    def heal(self, which: str) -> None:
        report = person.repair(self.world.open(which))
        assert report.is_clean, f"not repaired: {[f.message for f in report.findings]}"
        self.damaged.discard(self.world.store(which))

    # -- other processes ------------------------------------------------------------------------------------

    def start(
        self, which: str, names: list[str], die_after: int | None, *, unread: bool = False
    ) -> tuple[Any, Any]:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOAD)
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(
            target=person.in_child,
            args=(self.file(which), names, die_after, theirs),
            kwargs={"unread": unread},
            daemon=True,
        )
        process.start()
        theirs.close()
        return process, ours

    def finish(self, process: Any, ours: Any) -> tuple[int, list[str]] | None:
        """What a child says that it did; None when it was killed."""
        process.join(PATIENCE)
        if process.exitcode == -9:
            return None
        assert process.exitcode == 0, f"a build beside another one ended with {process.exitcode}"
        return ours.recv()

    @precondition(lambda self: self.children)
    @rule(which=checkouts, number=numbers, after=st.integers(1, 40), build=st.booleans())
    def kill_a_build(self, which: str, number: int, after: int, build: bool) -> None:
        names = list(self.world.declared[which].targets)
        some = [names[(number + 7 * i) % len(names)] for i in range(number % 3)]
        killed = self.finish(*self.start(which, list(dict.fromkeys(some)), after)) is None
        self.note("kill -9" if killed else "a build that ended before it was killed", which)
        if build:
            self.run(which)

    @precondition(lambda self: self.children)
    @rule(which=checkouts, after=st.none() | st.integers(1, 60), again=st.booleans(), build=st.booleans())
    def build_from_what_nobody_has_read(
        self, which: str, after: int | None, again: bool, build: bool
    ) -> None:
        """The store has forgotten the digests of the bases: a first pass reads each once, or dies."""
        self.note("a first build", which)
        for place in self.parts(which, "state"):
            place.unlink()
        self.damage(which)
        if self.finish(*self.start(which, [], after, unread=True)) is None:
            self.note("kill -9 of a first build", which)
            if again:
                assert self.finish(*self.start(which, [], None, unread=True)) is not None
        if build:
            self.run(which)

    @precondition(lambda self: self.children)
    @rule(which=checkouts, other=checkouts)
    def two_at_once(self, which: str, other: str) -> None:
        self.note("two builds at once", which, other)
        spare = person.dropped(self.world.open(which))
        missing = person.missing(self.file(which), ())
        theirs = person.missing(self.file(other), ())
        shared = self.world.store(which) == self.world.store(other)
        planned = len(missing | theirs) if shared else len(missing) + len(theirs)
        child = self.start(other, [], None)
        project = self.world.open(which)
        targets = person.chosen(project, [])
        person.prepare(project, targets)
        ran = person.build(self.world.open(which), targets)
        said = self.finish(*child)
        assert said is not None
        extra = [*ran.steps, *said[1]]  # each may make the intermediate that it reads
        if not extra:
            least = planned - spare.blocks
            assert least <= ran.blocks + said[0] <= planned, f"{ran.blocks} + {said[0]}, not {planned}"
        self.require_built(which, ())
        self.require_built(other, ())

    @precondition(lambda self: self.children)
    @rule(
        which=checkouts,
        other=checkouts,
        what=st.sampled_from(["gc", "clean", "verify", "prune"]),
        number=numbers,
    )
    def beside_a_build(self, which: str, other: str, what: str, number: int) -> None:
        self.note(f"{what} beside a build", which, other)
        child = self.start(other, [], None)
        clean_before = self.world.store(which) not in self.damaged
        for _ in range(3):
            match what:
                case "gc":
                    person.collect(self.file(which), Policy(grace_s=0.0))
                case "clean":
                    names = list(self.world.declared[which].targets)
                    clean(self.world.open(which), [names[number % len(names)]], silent)
                case "verify":
                    report = person.look(self.world.open(which))
                    assert report.is_clean or not clean_before, [f.message for f in report.findings]
                case "prune":
                    prune_intermediates(self.world.open(which), silent)
        assert self.finish(*child) is not None

    # -- what always holds ----------------------------------------------------------------------------------

    @invariant()
    def everything_holds(self) -> None:
        self.counts["steps"] = self.counts.get("steps", 0) + 1
        self.what_is_not_ours_is_untouched()
        for name in CHECKOUTS:
            if self.world.store(name) in self.touched:
                self.what_is_built_is_right(name)
        for name in ("one", OWN):
            if self.world.store(name) in self.touched - self.damaged:
                report = person.look(self.world.open(name))
                assert report.is_clean, [f.message for f in report.findings]
        self.touched.clear()

    def what_is_built_is_right(self, name: str) -> None:
        project = self.world.open(name)
        for target in person.built(project):
            content = self.world.content(name, target)
            wanted = self.fresh.files(content, lambda file, name: person.run(file, [name]))
            found = files_of(project.store.models / target)
            self.counts["targets compared"] = self.counts.get("targets compared", 0) + 1
            odd = sorted(n for n in {*wanted, *found} if wanted.get(n) != found.get(n))
            assert not odd, f"{name}: {odd} of {target} differ from a fresh build of {content}"

    def what_is_not_ours_is_untouched(self) -> None:
        now, before = self.world.look(), self.world.foreign
        odd = sorted(n for n in {*now, *before} if now.get(n) != before.get(n))
        assert not odd, f"{odd} was touched"
