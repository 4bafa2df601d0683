"""Both directions of every key: each named part changes it and `why` names it, and nothing else does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from builder.keys import Digest, Key
from builder.plan import learned as learned_steps
from builder.plan import parts, planning
from builder.plan.changes import changes
from builder.plan.planning import make_plan
from builder.plan.types import Plan, Sources, TargetPlan, nominal_size
from builder.sources.facts import AdapterFacts, BaseFacts, BaseIdentity, Calibration
from builder.spec.quantizers import METHOD_SETTINGS, Calibrated, Learned
from builder.spec.types import Base, Model, Override, PathSource, Quantization, Spec, Variant
from builder.store.types import Blob, FileEntry, Manifest
from builder.weights.structure import Structure, TensorSpec
from tests.plan.test_changes import former
from tests.plan.test_planning import structure


def digest(letter: str) -> Digest:
    return Digest(letter * 64)


def file(name: str, letter: str = "f") -> FileEntry:
    return FileEntry(name, Blob(digest(letter), 9))


def recipes() -> Structure:
    found = structure()
    quantizable = [replace(q, recipes={"mixed_3_6": 3, "mixed_4_6": 4}) for q in found.quantizable]
    return replace(found, quantizable=tuple(quantizable))


F16 = Variant("f16", dtype="float16")
IDENTITY = BaseIdentity(
    digest("b"), digest("c"), digest("d"), digest("e"), (file("tokenizer.json"), file("notes.json"))
)
TOY = structure()
ADAPTER = AdapterFacts(digest("a"), {"layers.1": Key("1" * 64)}, frozenset({"layers.1.down_proj"}))
TEXT = Calibration(digest("7"), "jsonl")


@dataclass(frozen=True)
class World:
    """All that a plan of one target is made from."""

    variant: Variant
    source: Variant = F16
    identity: BaseIdentity = IDENTITY
    structure: Structure = TOY
    adapter: AdapterFacts | None = ADAPTER
    text: Calibration = TEXT
    toolchain: str = "mlx 1"
    rounding: int = 2
    tuning: int = 1
    start: Variant | None = None
    names: tuple[str, str, str] = ("b", "a", "m")

    def plan(self) -> TargetPlan:
        found = self.all.targets[f"{self.names[2]}_{self.variant.name}"]
        assert isinstance(found, TargetPlan), found
        return found

    @property
    def all(self) -> Plan:
        base, adapter, model = self.names
        variants = {v.name: v for v in (self.source, self.start, self.variant) if v}
        worn = adapter if self.adapter else None
        spec = Spec(
            Path("/project/artifacts.toml"),
            Path("/project/store"),
            bases={base: Base(base, PathSource(Path("/base")))},
            variants=variants,
            models={model: Model(model, base, worn, tuple(variants))},
        )
        facts = {base: BaseFacts(self.identity, self.structure)}
        adapters = {adapter: self.adapter} if self.adapter else {}
        patched = mock.patch.object(parts, "ROUNDING", self.rounding)
        with patched, mock.patch.object(learned_steps, "TUNING", self.tuning):
            return make_plan(spec, Sources(facts, adapters, self.toolchain, {self.variant.name: self.text}))


Change = Callable[[World], World]
FOUR = World(Variant("v", quantization=Quantization(4, 64)))
PLAIN = World(Variant("v"))
MIXED = World(Variant("v", recipe="mixed_3_6", group_size=64), structure=recipes())


def learning(method: str = "dwq") -> World:
    learned = Learned(method, "f16", Path("/text"), seed=1)
    world = World(Variant("v", quantization=Quantization(4, 16), learned=learned))
    known = "llama" if method in ("awq", "gptq") else "toy"  # awq knows some types of models only
    return replace(world, structure=replace(world.structure, model_type=known))


def tuning(text: str = "jsonl") -> World:
    how = Learned("dwq", "f16", Path("/text"), seed=1, start="8bit")
    start = Variant("8bit", quantization=Quantization(4, 16))
    return World(Variant("v", learned=how), start=start, text=Calibration(digest("7"), text))


def start(**values: Any) -> Change:
    return lambda w: replace(w, start=replace(w.start, **values))  # type: ignore[type-var]


ROUNDED = World(Variant("v", quantization=Quantization(4, 64), calibrated=Calibrated(Path("/text"))))
PLAIN_TEXT = replace(ROUNDED, text=Calibration(digest("7"), "text"))


def variant(**values: Any) -> Change:
    return lambda world: replace(world, variant=replace(world.variant, **values))


def learned(**values: Any) -> Change:
    return lambda w: replace(w, variant=replace(w.variant, learned=replace(w.variant.learned, **values)))  # type: ignore[type-var]


def calibrated(**values: Any) -> Change:
    return lambda w: replace(
        w, variant=replace(w.variant, calibrated=replace(w.variant.calibrated, **values))
    )  # type: ignore[type-var]


def identity(**values: Any) -> Change:
    return lambda world: replace(world, identity=replace(world.identity, **values))


def adapter(**values: Any) -> Change:
    return lambda w: replace(w, adapter=replace(w.adapter, **values))  # type: ignore[type-var]


def aux(*entries: FileEntry) -> Change:
    return lambda world: identity(aux=(*world.identity.aux, *entries))(world)


def both(*all_of_them: Change) -> Change:
    def change(world: World) -> World:
        for each in all_of_them:
            world = each(world)
        return world

    return change


def shaped(world: World) -> World:
    """An unquantized tensor of another shape: 8,320 and 16,512 bytes once had one key."""
    parameters = tuple(
        replace(p, tensor=replace(p.tensor, shape=(2 * p.tensor.shape[0],))) if "norm" in p.tensor.name else p
        for p in world.structure.parameters
    )
    return replace(world, structure=replace(world.structure, parameters=parameters))


def renamed_tensors(world: World) -> World:
    """An mlx-lm that calls a layer otherwise, with the same files."""

    def new(name: str) -> str:
        return name.replace("layers.0", "layers.2")

    return replace(
        world,
        structure=replace(
            world.structure,
            parameters=tuple(
                replace(p, tensor=replace(p.tensor, name=new(p.tensor.name)))
                for p in world.structure.parameters
            ),
            quantizable=tuple(replace(q, path=new(q.path)) for q in world.structure.quantizable),
            adaptable=frozenset(map(new, world.structure.adaptable)),
        ),
    )


def kept(world: World) -> World:
    """An mlx-lm that leaves another layer as it is, with the same files."""
    quantizable = tuple(q for q in world.structure.quantizable if q.path != "layers.0.down_proj")
    return replace(world, structure=replace(world.structure, quantizable=quantizable))


TEMPLATE = both(identity(prompts=digest("8")), aux(file("chat_template.jinja")))
SLICES = adapter(slices={"layers.1": Key("2" * 64)})
OTHER_ADAPTER = both(adapter(digest=digest("9")), SLICES)
OUTSIDE = both(
    adapter(digest=digest("9")), adapter(slices={"layers.1": Key("1" * 64), "head": Key("2" * 64)})
)
LAYOUT = "names, types or shapes of tensors changed"
PATHS = "quantization of some paths changed"
EMBED = Override("embed", Quantization(8, 64))

# (the key's domain, the part) -> a world, a change of this part in it, what `why` says.
PARTS: Mapping[tuple[str, str], tuple[World, Change, list[str]]] = {
    ("block/2", "base_digest"): (FOUR, identity(weights=digest("8")), ["base changed"]),
    ("block/2", "block"): (FOUR, renamed_tensors, [PATHS, LAYOUT]),
    ("block/2", "slices_digest"): (FOUR, OTHER_ADAPTER, ["adapter changed"]),
    ("block/2", "dtype"): (PLAIN, variant(dtype="float16"), ["dtype bfloat16 -> float16"]),
    ("block/2", "tensors_digest"): (FOUR, shaped, [LAYOUT]),
    ("block/2", "quantization_digest"): (FOUR, kept, [PATHS, LAYOUT]),
    ("block/2", "toolchain"): (FOUR, lambda w: replace(w, toolchain="mlx 2"), ["toolchain mlx 1 -> mlx 2"]),
    ("config/3", "config_digest"): (FOUR, identity(config=digest("8")), ["config.json changed"]),
    ("config/3", "generation_digest"): (
        FOUR,
        aux(file("generation_config.json")),
        ["generation_config.json unset -> ffffffffffff"],
    ),
    ("config/3", "dtype"): (PLAIN, variant(dtype="float16"), ["dtype bfloat16 -> float16"]),
    ("config/3", "dtype_asked"): (PLAIN, variant(dtype="bfloat16"), ["dtype_asked unset -> bfloat16"]),
    ("config/3", "paths_digest"): (FOUR, kept, [PATHS, LAYOUT]),
    ("config/3", "common"): (FOUR, variant(quantization=Quantization(5, 64)), ["bits 4 -> 5"]),
    ("config/3", "recipe"): (MIXED, variant(group_size=32), ["group_size 64 -> 32"]),
    ("config/3", "overrides"): (
        FOUR,
        variant(overrides=(EMBED,)),
        ["override embed unset -> 1: 8 bits, group 64, affine"],
    ),
    ("config/3", "toolchain"): (
        FOUR,
        lambda w: replace(w, toolchain="mlx 2"),
        ["toolchain mlx 1 -> mlx 2"],
    ),
    ("learned/3", "method"): (learning("gptq"), learned(method="awq"), ["method gptq -> awq"]),
    ("learned/3", "seed"): (learning(), learned(seed=2), ["seed 1 -> 2"]),
    ("learned/3", "samples"): (learning(), learned(samples=9), ["samples 128 -> 9"]),
    ("learned/3", "sequence_length"): (learning(), learned(sequence_length=9), ["sequence_length 512 -> 9"]),
    ("learned/3", "learning_rate"): (learning(), learned(learning_rate=0.5), ["learning_rate 1e-06 -> 0.5"]),
    ("learned/3", "high_bits"): (learning("dynamic"), learned(high_bits=6), ["high_bits 8 -> 6"]),
    ("learned/3", "target_bpw"): (learning("dynamic"), learned(target_bpw=4.5), ["target_bpw 5.0 -> 4.5"]),
    ("learned/3", "bits"): (learning(), variant(quantization=Quantization(3, 16)), ["bits 4 -> 3"]),
    ("learned/3", "group_size"): (
        learning(),
        variant(quantization=Quantization(4, 8)),
        ["group_size 16 -> 8"],
    ),
    ("learned/3", "calibration_digest"): (
        learning(),
        lambda w: replace(w, text=Calibration(digest("8"), "jsonl")),
        ["calibration changed"],
    ),
    ("learned/3", "calibration_format"): (
        learning(),
        lambda w: replace(w, text=Calibration(digest("7"), "text")),
        ["calibration format jsonl -> text"],
    ),
    ("learned/3", "vocabulary_digest"): (learning(), identity(vocabulary=digest("8")), ["tokenizer changed"]),
    ("learned/3", "source_blocks"): (learning(), OTHER_ADAPTER, ["adapter changed"]),
    ("tuned/1", "seed"): (tuning(), learned(seed=2), ["seed 1 -> 2"]),
    ("tuned/1", "samples"): (tuning(), learned(samples=9), ["samples 128 -> 9"]),
    ("tuned/1", "sequence_length"): (tuning(), learned(sequence_length=9), ["sequence_length 512 -> 9"]),
    ("tuned/1", "learning_rate"): (tuning(), learned(learning_rate=0.5), ["learning_rate 1e-06 -> 0.5"]),
    ("tuned/1", "tuning"): (tuning(), lambda w: replace(w, tuning=2), ["tuning 1 -> 2"]),
    ("tuned/1", "start_digest"): (
        tuning(),
        start(quantization=Quantization(3, 16)),
        ["what its codes are taken from changed"],
    ),
    ("tuned/1", "calibration_digest"): (
        tuning(),
        lambda w: replace(w, text=Calibration(digest("8"), "jsonl")),
        ["calibration changed"],
    ),
    ("tuned/1", "calibration_format"): (
        tuning(),
        lambda w: replace(w, text=Calibration(digest("7"), "text")),
        ["calibration format jsonl -> text"],
    ),
    ("tuned/1", "prompts_digest"): (tuning(), TEMPLATE, ["chat_template.jinja unset -> ffffffffffff"]),
    ("tuned/1", "vocabulary_digest"): (
        tuning("text"),
        identity(vocabulary=digest("8")),
        ["tokenizer changed"],
    ),
    ("tuned/1", "source_blocks"): (tuning(), OTHER_ADAPTER, ["adapter changed"]),
    ("learned-config/1", "learned"): (learning(), learned(seed=2), ["seed 1 -> 2"]),
    ("learned-config/1", "source_config"): (
        learning(),
        identity(config=digest("8")),
        ["config.json changed"],
    ),
    ("rounded/1", "base_digest"): (ROUNDED, identity(weights=digest("8")), ["base changed"]),
    ("rounded/1", "block"): (
        ROUNDED,
        renamed_tensors,
        [PATHS, LAYOUT],
    ),
    ("rounded/1", "slices_digest"): (ROUNDED, OTHER_ADAPTER, ["adapter changed"]),
    ("rounded/1", "dtype"): (ROUNDED, variant(dtype="float16"), ["dtype bfloat16 -> float16"]),
    ("rounded/1", "tensors_digest"): (ROUNDED, shaped, [LAYOUT]),
    ("rounded/1", "quantization_digest"): (
        ROUNDED,
        kept,
        [PATHS, LAYOUT],
    ),
    ("rounded/1", "toolchain"): (
        ROUNDED,
        lambda w: replace(w, toolchain="mlx 2"),
        ["toolchain mlx 1 -> mlx 2"],
    ),
    ("rounded/1", "rounding"): (ROUNDED, lambda w: replace(w, rounding=9), ["rounding 2 -> 9"]),
    ("rounded/1", "calibration_digest"): (
        ROUNDED,
        lambda w: replace(w, text=Calibration(digest("8"), "jsonl")),
        ["calibration changed"],
    ),
    ("rounded/1", "calibration_format"): (
        ROUNDED,
        lambda w: replace(w, text=Calibration(digest("7"), "text")),
        ["calibration format jsonl -> text"],
    ),
    ("rounded/1", "prompts_digest"): (ROUNDED, TEMPLATE, ["chat_template.jinja unset -> ffffffffffff"]),
    ("rounded/1", "vocabulary_digest"): (PLAIN_TEXT, identity(vocabulary=digest("8")), ["tokenizer changed"]),
    ("rounded/1", "samples"): (ROUNDED, calibrated(samples=9), ["samples 32 -> 9"]),
    ("rounded/1", "sequence_length"): (ROUNDED, calibrated(sequence_length=9), ["sequence_length 256 -> 9"]),
    ("rounded/1", "outside_digest"): (ROUNDED, OUTSIDE, ["adapter changed"]),
    ("rounded/1", "before_digest"): (ROUNDED, OTHER_ADAPTER, ["adapter changed"]),
    ("before/1", "before"): (ROUNDED, OTHER_ADAPTER, ["adapter changed"]),
    ("before/1", "block"): (ROUNDED, OTHER_ADAPTER, ["adapter changed"]),
    ("target/3", "made"): (FOUR, OTHER_ADAPTER, ["adapter changed"]),
    ("target/3", "config"): (FOUR, identity(config=digest("8")), ["config.json changed"]),
    ("target/3", "copied"): (
        FOUR,
        identity(aux=(file("tokenizer.json"), file("notes.json", "8"))),
        ["notes.json changed"],
    ),
    ("measured/1", "made"): (FOUR, OTHER_ADAPTER, ["adapter changed"]),
    ("measured/1", "config"): (FOUR, identity(config=digest("8")), ["config.json changed"]),
    ("measured/1", "prompts"): (
        FOUR,
        both(identity(prompts=digest("8")), aux(file("chat_template.jinja"))),
        ["chat_template.jinja unset -> ffffffffffff"],
    ),
}

Made = list[tuple[str, Mapping[str, object], Key]]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Made:
    """Every key that planning makes of named parts."""
    found: Made = []
    real = planning.named_key

    def noted(domain: str, parts: Mapping[str, object]) -> Key:
        key = real(domain, parts)
        found.append((domain, parts, key))
        return key

    monkeypatch.setattr(planning, "named_key", noted)
    monkeypatch.setattr(parts, "named_key", noted)
    monkeypatch.setattr(learned_steps, "named_key", noted)
    return found


def built(plan: TargetPlan) -> Manifest:
    """As `former` says, of whatever the plan copies."""
    return replace(former(plan), key=plan.key)


@pytest.mark.parametrize(("domain", "part"), PARTS)
def test_a_part_of_a_key_changes_it_and_is_named(made: Made, domain: str, part: str) -> None:
    world, change, said = PARTS[domain, part]

    def keyed(world: World) -> tuple[TargetPlan, list[object], list[Key]]:
        made.clear()
        plan = world.plan()
        mine = [(parts, key) for name, parts, key in made if name == domain]
        return plan, [parts.get(part) for parts, _ in mine], [key for _, key in mine]

    before, values, keys = keyed(world)
    after, values_now, keys_now = keyed(change(world))
    assert values != values_now
    assert keys != keys_now
    assert before.key != after.key
    assert [found.text for found in _shortly(changes(after, built(before)))] == said
    assert changes(after, built(after)) == ()
    assert changes(before, built(before)) == ()


UNASKED = replace(learning(), source=Variant("f16"))
MORE: list[tuple[World, Change, list[str]]] = [
    (PLAIN, lambda w: replace(w, adapter=None), ["adapter a -> unset"]),
    (replace(PLAIN, adapter=None), lambda w: replace(w, adapter=PLAIN.adapter), ["adapter unset -> a"]),
    (PLAIN, SLICES, ["what the adapter changes changed"]),  # the same tensors, put elsewhere
    (PLAIN, shaped, [LAYOUT]),
    (MIXED, variant(recipe="mixed_4_6", group_size=64), ["recipe mixed_3_6 -> mixed_4_6"]),
    (
        FOUR,
        variant(quantization=Quantization(4, 32, "mxfp4")),
        ["group_size 64 -> 32", "mode affine -> mxfp4"],
    ),
    (
        UNASKED,
        lambda w: replace(w, source=Variant("f16", dtype="bfloat16")),
        ["dtype_asked unset -> bfloat16"],
    ),
    (UNASKED, lambda w: replace(w, source=Variant("f16", dtype="float16")), ["dtype bfloat16 -> float16"]),
    (learning(), lambda w: replace(w, toolchain=""), ["toolchain mlx 1 -> unset"]),
    (
        replace(FOUR, variant=replace(FOUR.variant, overrides=(EMBED, Override("*", None)))),
        variant(overrides=(Override("*", None), EMBED)),
        [
            "override * 2: as it is -> 1: as it is",
            "override embed 1: 8 bits, group 64, affine -> 2: 8 bits, group 64, affine",
        ],
    ),
]


@pytest.mark.parametrize(("world", "change", "said"), MORE)
def test_whatever_changes_a_target_is_named(world: World, change: Change, said: list[str]) -> None:
    before, after = world.plan(), change(world).plan()
    assert before.key != after.key
    assert [found.text for found in _shortly(changes(after, built(before)))] == said


def _shortly(found: Any) -> list[Any]:
    return [replace(c, now=c.now[:12] if c.now and len(c.now) == 64 else c.now) for c in found]


def test_every_part_of_every_key_is_in_the_table(made: Made) -> None:
    for world in (FOUR, PLAIN, MIXED, ROUNDED, tuning(), *(learning(method) for method in METHOD_SETTINGS)):
        world.plan()
    assert {(domain, part) for domain, parts, _ in made for part in parts} == set(PARTS)


# -- what changes no key -------------------------------------------------------------------------------------


def everything(plan: TargetPlan) -> tuple[object, ...]:
    return plan.key, plan.keys, plan.measured, plan.learned


WORLDS = {"four": FOUR, "plain": PLAIN, "mixed": MIXED, "learned": learning(), "rounded": ROUNDED}
WORLDS["tuned"] = tuning()


@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
@pytest.mark.parametrize(
    "change",
    [
        lambda w: replace(w, names=("other", "a", "m")),
        lambda w: replace(w, names=("b", "other", "m")),
        lambda w: replace(w, names=("b", "a", "other")),
        variant(name="other"),
        variant(intermediate=True),
    ],
    ids=["base", "adapter", "model", "variant", "intermediate"],
)
def test_a_name_is_in_no_key(world: World, change: Change) -> None:
    before, after = world.plan(), change(world).plan()
    assert everything(after) == everything(before)
    assert changes(after, built(before)) == ()


@pytest.mark.parametrize("name", ["other", "f32"])
def test_the_name_of_the_source_is_in_no_key(name: str) -> None:
    world = learning()
    change = both(lambda w: replace(w, source=replace(w.source, name=name)), learned(source=name))
    before, after = world.plan(), change(world).plan()
    assert everything(after) == everything(before)
    assert changes(after, built(before)) == ()


def test_the_name_of_the_start_is_in_no_key() -> None:
    before = tuning().plan()
    after = both(start(name="other"), learned(start="other"))(tuning()).plan()
    assert everything(after) == everything(before)
    assert changes(after, built(before)) == ()
    assert before.reads == ("m_f16", "m_8bit")
    assert nominal_size(before) == tuning().all.targets["m_8bit"].size  # type: ignore[union-attr]


VALUES = {
    "seed": 2,
    "samples": 9,
    "sequence_length": 9,
    "learning_rate": 0.5,
    "high_bits": 6,
    "target_bpw": 4.5,
}


@pytest.mark.parametrize("method", METHOD_SETTINGS)
@pytest.mark.parametrize("name", VALUES)
def test_a_setting_counts_for_the_methods_that_read_it(method: str, name: str) -> None:
    world = learning(method)
    before, after = world.plan(), learned(**{name: VALUES[name]})(world).plan()
    counts = name in METHOD_SETTINGS[method]
    assert (before.learned != after.learned) == (before.key != after.key) == counts
    assert bool(changes(after, built(before))) == counts


def test_every_setting_of_a_learned_quantizer_was_tried() -> None:
    where = {"method", "source", "start", "calibration"}  # names; the text counts by its digest
    assert {field.name for field in fields(Learned)} == where | VALUES.keys()
    assert set().union(*METHOD_SETTINGS.values()) == VALUES.keys()


@pytest.mark.parametrize(
    ("change", "same"),
    [
        (aux(file("stray.json")), {"blocks", "learned", "config", "measured"}),
        (
            both(identity(prompts=digest("8")), aux(file("chat_template.jinja"))),
            {"blocks", "learned", "config"},
        ),
        (identity(config=digest("8")), {"blocks", "learned"}),  # eos_token_id
        (aux(file("generation_config.json")), {"blocks", "learned"}),
        (identity(vocabulary=digest("8")), {"blocks", "config", "measured"}),
        (
            identity(former=digest("8"), imported=Key("8" * 64)),
            {"blocks", "learned", "config", "measured", "key"},
        ),
    ],
    ids=["stray", "template", "eos", "generation", "vocabulary", "import"],
)
def test_each_key_takes_only_its_part_of_a_base(change: Change, same: set[str]) -> None:
    def parts_of(world: World) -> dict[str, object]:
        plain, whole = world.all.resolved()[0], world.plan()
        return {
            "blocks": [action.key for action in plain.actions],
            "learned": whole.learned,
            "config": plain.config,
            "measured": plain.measured,
            "key": plain.key,
        }

    before, after = parts_of(learning()), parts_of(change(learning()))
    assert {name for name in before if before[name] == after[name]} >= same
    assert {name for name in before if before[name] == after[name]} <= same | {"key", "measured"}


# -- blocks that are rounded one after the other ------------------------------------------------------------

DEEP = replace(ROUNDED, structure=structure(4), adapter=None)
EVERY = ["embed", "layers.0", "layers.1", "layers.2", "layers.3", "head"]


def changed(before: World, after: World) -> list[str]:
    """The blocks that would be made again."""
    one, other = ({action.block: action.key for action in world.plan().actions} for world in (before, after))
    assert list(one) == EVERY
    return [block for block in one if one[block] != other[block]]


def worn(*blocks: str, letter: str = "1") -> World:
    """A model with an adapter that changes these blocks."""
    facts = AdapterFacts(
        digest(letter), {b: Key(letter * 64) for b in blocks}, frozenset({"layers.1.down_proj"})
    )
    return replace(DEEP, adapter=facts)


@pytest.mark.parametrize("number", range(4))
def test_an_adapter_leaves_the_blocks_before_it(number: int) -> None:
    block = f"layers.{number}"
    assert changed(DEEP, worn(block)) == EVERY[number + 1 :]
    assert changed(worn(block), worn(block, letter="2")) == EVERY[number + 1 :]
    assert changed(worn(block, "layers.3"), worn(block)) == (EVERY[4:] if number < 3 else [])


@pytest.mark.parametrize("block", ["embed", "head"])
def test_an_adapter_outside_of_the_layers_changes_all(block: str) -> None:
    """It may work in every layer: the inputs of each layer of gemma3n stand after the layers."""
    assert changed(DEEP, worn(block)) == EVERY
    assert changed(worn(block), worn(block, letter="2")) == EVERY
    assert changed(worn(block, "layers.2"), worn(block, "layers.2", "layers.3")) == EVERY[4:]


@pytest.mark.parametrize(
    "change",
    [
        lambda w: replace(w, text=Calibration(digest("8"), "jsonl")),
        lambda w: replace(w, text=Calibration(digest("7"), "text")),
        calibrated(samples=33),
        calibrated(sequence_length=255),
        identity(prompts=digest("8")),
        identity(weights=digest("8")),
        lambda w: replace(w, rounding=9),
    ],
)
def test_what_changes_every_block(change: Change) -> None:
    assert changed(DEEP, change(DEEP)) == EVERY


def test_a_plain_text_knows_no_chat_template() -> None:
    plain = replace(DEEP, text=Calibration(digest("7"), "text"))
    assert changed(plain, identity(prompts=digest("8"))(plain)) == []
    assert changed(plain, identity(vocabulary=digest("8"))(plain)) == EVERY
    assert changed(DEEP, identity(vocabulary=digest("8"))(DEEP)) == []  # a part of what makes prompts


def test_the_place_of_the_text_is_in_no_key() -> None:
    moved = calibrated(calibration=Path("/elsewhere/other.jsonl"))(DEEP)
    assert everything(moved.plan()) == everything(DEEP.plan())


def test_the_quantization_of_a_block_leaves_the_blocks_before_it() -> None:
    after = variant(overrides=(Override("layers.2.*", Quantization(8, 64)),))(DEEP)
    assert changed(DEEP, after) == EVERY[3:]


def test_blocks_of_plain_variants_are_others() -> None:
    plain = replace(DEEP, variant=Variant("v", quantization=Quantization(4, 64)))
    assert changed(plain, DEEP) == EVERY
    for text in (Calibration(digest("8"), "text"), Calibration(digest("9"), "jsonl")):
        assert everything(replace(plain, text=text).plan()) == everything(plain.plan())
    assert everything(replace(plain, rounding=9).plan()) == everything(plain.plan())


@dataclass(frozen=True)
class Named:
    block: str
    tensors: tuple[TensorSpec, ...]


def test_layers_are_more_than_one_projection() -> None:
    names = {
        "model.embed": ["model.embed.weight", "model.embed.scales"],
        "model.gates.0": ["model.gates.0.weight", "model.gates.0.scales", "model.gates.0.bias"],
        "model.layers.0": ["model.layers.0.norm.weight", "model.layers.0.scale"],
        "model.layers.10": ["model.layers.10.mlp.up_proj.weight"],
    }
    blocks = [
        Named(block, tuple(TensorSpec(n, "F16", (1,)) for n in found)) for block, found in names.items()
    ]
    assert parts.layers_of(blocks) == {"model.layers.0", "model.layers.10"}  # type: ignore[arg-type]
