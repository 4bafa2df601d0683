"""Learned quantizers, and the life of the intermediate that they read: real runs on the tiny model."""

from __future__ import annotations

import json
import random
import shutil
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from blake3 import blake3

from builder.build import learned
from builder.build.learned_output import StepFailed, _losses
from builder.build.prepare import prepare_adapter, prepare_base
from builder.console.events import Emit
from builder.engine.arrays import raw
from builder.errors import SourceChanged
from builder.keys import Key
from builder.plan.types import TargetPlan
from builder.project.project import Project
from builder.release.delivery import deliver
from builder.store import records, views
from builder.store.care import verify
from builder.store.holdings import holds
from tests.architectures import checkpoint as make_checkpoint
from tests.architectures import dense
from tests.build.test_one_pass import ROW
from tests.conftest import Ran, Sandbox
from tests.tiny import BLOCKS, DECLARATION, make_adapter, make_base

Make = Callable[..., Sandbox]

LEARNED = """
[variant.learned]
method = "{method}"
from = "f16"
calibration = "text.txt"
bits = 4
group_size = 64
samples = 4
sequence_length = 32
"""


def words(seed: int) -> str:
    rng = random.Random(seed)
    return " ".join("".join(rng.choices("abcdefgh", k=5)) for _ in range(200))


@pytest.fixture
def project(sandbox: Make) -> Callable[[str], Sandbox]:
    def make(method: str) -> Sandbox:
        box = sandbox(DECLARATION.replace('"5bit"]', '"5bit", "learned"]') + LEARNED.format(method=method))
        make_base(box.root / "base")
        make_adapter(box.root / "adapter")
        (box.root / "text.txt").write_text(words(0))
        (box.root / "home").mkdir()
        return box

    return make


def run(box: Sandbox, *arguments: str) -> Ran:
    """doit with a home of its own, which must stay empty of calibration files and downloads."""
    ran = box.doit(*arguments, env={"HOME": str(box.root / "home"), "HF_HUB_OFFLINE": "1"})
    assert not (box.root / "home/.cache/mlx-lm").exists()
    return ran


def rows(ran: Ran) -> set[str]:
    assert ran.code == 0, ran.text
    return {name for name, _, _ in ROW.findall(ran.out)}


def test_an_intermediate_lives_as_long_as_it_is_needed(project: Callable[[str], Sandbox]) -> None:
    box = project("gptq")
    first = run(box, "model:m_learned")
    assert rows(first) == {"m_f16", "m_learned"}
    assert "pruned m_f16" in first.text
    assert not box.view("m_f16").exists()
    config = json.loads((box.view("m_learned") / "config.json").read_text())
    assert config["quantization"]["bits"] == 4
    assert rows(run(box, "model:m_learned")) == set()  # nothing rebuilds a pruned intermediate
    assert rows(run(box)) == {"m_4bit", "m_5bit"}
    assert not box.view("m_f16").exists()

    kept = box.view("m_learned") / "model-00002-of-00006.safetensors"
    before = kept.read_bytes()
    (box.root / "text.txt").write_text(words(1))
    again = run(box)
    assert rows(again) == {"m_f16", "m_learned"}  # what needs it brings it back, once more only for a while
    assert not box.view("m_f16").exists()
    assert kept.read_bytes() != before

    (box.root / "text.txt").write_text(words(0))
    assert rows(run(box)) == {"m_learned"}  # relinked: the former result is still in the store
    assert kept.read_bytes() == before


def test_an_intermediate_asked_for_by_name_stays(project: Callable[[str], Sandbox]) -> None:
    box = project("gptq")
    assert rows(run(box, "model:m_f16")) == {"m_f16"}
    assert rows(run(box, "model:m_learned")) == {"m_learned"}
    assert box.view("m_f16").exists()
    assert run(box, "clean:f16").code == 0
    assert rows(run(box)) == {"m_4bit", "m_5bit"}
    assert not box.view("m_f16").exists()


def measures(box: Sandbox, name: str) -> dict[str, float]:
    (found,) = (
        manifest["measures"]
        for file in (box.root / "store/targets").rglob("*.toml")
        if (manifest := tomllib.loads(file.read_text()))["name"] == name and manifest["kind"] == "target"
    )
    return dict(found)


def test_gptq_of_activations_whose_squares_float16_cannot_hold(project: Callable[[str], Sandbox]) -> None:
    box = project("gptq")
    for file in (box.root / "base").glob("*.safetensors"):
        tensors = dict(mx.load(str(file)))
        for name in [name for name in tensors if "layernorm" in name]:
            tensors[name] = tensors[name] * 60  # 128 tokens: 128 * 60^2 > 65504
        mx.eval(tensors)
        mx.save_safetensors(str(file), tensors, metadata={"format": "pt"})
    assert "m_learned" in rows(run(box, "model:m_learned"))
    assert 0.01 < measures(box, "m_learned")["quantization_error"] < 0.2


def test_what_is_no_quantization_of_its_source_is_refused(project: Callable[[str], Sandbox]) -> None:
    box = project("gptq")
    loaded = Project.load(box.toml)
    prepare_base(loaded, loaded.spec.bases["tiny"], lambda _: None)
    prepare_adapter(loaded, loaded.spec.adapters["tuned"], lambda _: None)
    plan = loaded.plan.targets["m_learned"]
    assert isinstance(plan, TargetPlan)
    weight = mx.random.normal((8, 128), key=mx.random.key(0)).astype(mx.float16)

    def losses(of: mx.array) -> list[object]:
        names = ("x.weight", "x.scales", "x.biases")
        made = dict(zip(names, map(raw, mx.quantize(of, 64, 4)), strict=True))
        return list(_losses(plan, made, {"x.weight": weight, "x.scales": None, "x.biases": None}))

    assert len(losses(weight)) == 1
    with pytest.raises(StepFailed) as caught:
        losses(-weight)
    assert caught.value.message == (
        'm_learned: method "gptq" failed: what it made of "x" has nothing in common with the weight'
    )
    with pytest.raises(StepFailed, match='what it made of "x" has nothing'):
        losses(mx.random.normal((8, 128), key=mx.random.key(1)).astype(mx.float16))
    assert len(losses(weight + 1.7 * mx.random.normal((8, 128), key=mx.random.key(1)))) == 1
    with pytest.raises(StepFailed, match='it made NaN or infinity of "x.scales"'):
        losses(weight * float("inf"))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dwq", "awq", "gptq", "dynamic"])
def test_each_method(project: Callable[[str], Sandbox], method: str) -> None:
    from mlx_lm import load

    box = project(method)
    assert "m_learned" in rows(run(box, "model:m_learned"))
    model, *_ = load(str(box.view("m_learned")))
    assert model is not None
    files = {path.name: path.read_bytes() for path in box.view("m_learned").glob("*.safetensors")}
    twin = Sandbox(box.root)
    assert run(twin, "clean:learned").code == 0
    assert "m_learned" in rows(run(twin, "model:m_learned"))
    made_again = {path.name: path.read_bytes() for path in box.view("m_learned").glob("*.safetensors")}
    assert made_again == files  # the same inputs and seed give the same bytes


def test_a_failing_method_leaves_nothing(project: Callable[[str], Sandbox]) -> None:
    box = project("gptq")
    (box.root / "text.txt").write_text("too short")
    ran = run(box, "model:m_learned")
    assert ran.code == 2
    assert 'method "gptq" failed' in ran.text
    assert "holds 9 tokens; at least 64 are needed" in ran.text
    assert "Traceback" not in ran.text
    assert not box.view("m_learned").exists()
    assert not list((box.root / "store/tmp").glob("*"))


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('from = "f16"\n', "", "[variant.learned] method needs from"),
        ('from = "f16"', 'from = "4bit"', "which is quantized"),
        ('from = "f16"', 'from = "f61"', 'did you mean "f16"?'),
        ('method = "gptq"', 'method = "gtpq"', 'did you mean "gptq"?'),
        ("samples = 4", "samples = 0", "samples = 0 is too small"),
        ('variants = ["f16", ', "variants = [", "which this model does not list"),
    ],
)
def test_wrong_declarations(project: Callable[[str], Sandbox], old: str, new: str, says: str) -> None:
    box = project("gptq")
    box.edit(old, new)
    ran = box.doit("list")
    assert ran.code == 3
    assert says in ran.err


def test_a_missing_calibration_file_is_said(project: Callable[[str], Sandbox]) -> None:
    box = project("gptq")
    (box.root / "text.txt").unlink()
    ran = run(box, "model:m_learned")
    assert ran.code in (1, 2)
    assert "[variant.learned]" in ran.text or "variant.learned: " in ran.text
    assert "text.txt does not exist" in ran.text
    assert "Traceback" not in ran.text
    assert not box.view("m_f16").exists()  # nothing was made for it


def test_awq_refuses_an_unknown_type_before_any_work(project: Callable[[str], Sandbox]) -> None:
    box = project("awq")
    config = make_checkpoint(box.root / "seed", dense("seed_oss")) / "config.json"
    assert json.loads(config.read_text())["model_type"] == "seed_oss"
    box.edit('path = "base"', 'path = "seed"')
    box.edit('adapter = "tuned"', 'base = "tiny"')
    ran = run(box, "model:m_learned")
    assert ran.code != 0
    assert '[variant.learned] method "awq" does not support model type "seed_oss"' in ran.text
    assert "Traceback" not in ran.text
    assert not box.view("m_f16").exists()


def plan_of(box: Sandbox) -> dict[str, Any]:
    return dict(json.loads(box.doit("plan", "m_learned", "--json").out))


def test_a_plan_counts_the_intermediate_that_a_run_makes(project: Callable[[str], Sandbox]) -> None:
    box = project("gptq")
    assert box.doit("base:tiny", "adapter:tuned").code == 0
    status = {row["target"]: row for row in json.loads(box.doit("status", "--json").out)["targets"]}
    unknown = ("size", "bits_per_weight", "blocks", "reused")
    assert [status["m_learned"][name] for name in unknown] == [None] * 4
    said = plan_of(box)
    assert (said["relink"], said["prepare"], said["refused"]) == ([], [], [])
    (one,) = said["passes"]
    assert one["targets"] == ["m_f16"]
    assert one["make"] == BLOCKS
    assert said["space"]["after"] - said["space"]["before"] == one["write"] > 0
    step = {
        "target": "m_learned",
        "method": "gptq",
        "source": "m_f16",
        "read": one["write"],
        "prunes": True,
        "start": None,
    }
    assert said["learned"] == [step]
    text = box.doit("plan", "m_learned").out
    assert "m: build m_f16 in one pass\n" in text
    assert "then gptq makes m_learned of m_f16 (" in text
    assert "no bytes written" not in text

    assert rows(run(box, "model:m_f16")) == {"m_f16"}  # kept: it was asked for by name
    said = plan_of(box)
    assert (said["passes"], said["relink"], said["built"]) == ([], [], [])
    assert said["learned"] == [{**step, "prunes": False}]

    assert rows(run(box, "model:m_learned")) == {"m_learned"}
    assert plan_of(box)["built"] == ["m_learned"]
    (box.view("m_learned") / "artifact.toml").unlink()
    said = plan_of(box)
    assert (said["learned"], said["relink"]) == ([], ["m_learned"])


def test_its_text_is_part_of_what_it_was_made_from(project: Callable[[str], Sandbox]) -> None:
    box = project("gptq")
    assert rows(run(box, "model:m_learned")) == {"m_f16", "m_learned"}
    digest = blake3((box.root / "text.txt").read_bytes()).hexdigest()
    assert f"| calibration digest | `{digest}` |" in (box.view("m_learned") / "README.md").read_text()
    ran = box.run(sys.executable, "-m", "builder.commands.main", "attest", "m_learned")
    made = json.loads(ran.out)["predicate"]["buildDefinition"]["resolvedDependencies"]
    assert {"name": "calibration:learned", "digest": {"blake3": digest}} in made


def test_python_builds_what_a_learned_target_reads(project: Callable[[str], Sandbox]) -> None:
    box = project("gptq")
    code = "from builder import Project; print([b.name for b in Project().build('m_learned')])"
    ran = box.run(sys.executable, "-c", code)
    assert (ran.code, ran.out) == (0, "['m_f16', 'm_learned']\n"), ran.text
    assert box.view("m_learned").exists()
    assert not box.view("m_f16").exists()  # pruned, as doit does
    assert box.run(sys.executable, "-c", code).out == "['m_learned']\n"
    assert not box.view("m_f16").exists()
    (box.root / "text.txt").unlink()
    gone = box.run(sys.executable, "-c", code)  # SourceMissing
    assert "SourceMissing: variant.learned: " in gone.err


def test_the_intermediate_is_made_in_the_pass_of_the_others(project: Callable[[str], Sandbox]) -> None:
    box = project("gptq")
    assert box.doit("base:tiny", "adapter:tuned").code == 0
    (said,) = json.loads(box.doit("plan", "--json").out)["passes"]
    ran = run(box, "run", "--progress", "json")
    assert ran.code == 0, ran.text
    events = [json.loads(line) for line in ran.err.splitlines() if line.startswith("{")]
    (one,) = [event for event in events if event["event"] == "PassStarted"]
    assert one["blocks"] == said["make"]
    assert one["nbytes"] == said["write"]
    assert sorted(f"m_{variant}" for variant in one["targets"]) == sorted(said["targets"])
    assert {path.name for path in (box.root / "store/models").iterdir()} == {"m_4bit", "m_5bit", "m_learned"}


def test_nothing_is_made_for_what_is_refused(project: Callable[[str], Sandbox]) -> None:
    box = project("gptq")
    assert box.doit("model:m_4bit").code == 0
    shutil.copytree(box.view("m_4bit"), box.root / "packed")
    box.toml.write_text(
        box.toml.read_text()
        + '[base.packed]\npath = "packed"\n[model.bad]\nbase = "packed"\nvariants = ["f16", "learned"]\n'
    )
    ran = run(box, "model:bad_learned")  # PlanError
    assert ran.code == 2
    assert 'variant "learned" would keep the old bits' in ran.text
    assert not box.view("bad_f16").exists()


def test_a_repair_makes_a_learned_target_again(project: Callable[[str], Sandbox]) -> None:
    box = project("gptq")
    assert rows(run(box, "model:m_f16", "model:m_learned")) == {"m_f16", "m_learned"}
    shard = box.view("m_learned") / "model-00002-of-00006.safetensors"
    before = shard.read_bytes()
    shard.chmod(0o644)
    shard.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    ran = run(box, "verify", "--repair")
    assert ran.code == 0, ran.text
    assert shard.read_bytes() == before
    assert run(box, "verify").code == 0
    assert box.doit("status", "m_learned").code == 0


def test_the_models_own_code_is_trusted_where_the_base_is(project: Callable[[str], Sandbox]) -> None:
    box = project("gptq")
    config = box.root / "base/config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "model_file": "mine.py"}))
    (box.root / "base/mine.py").write_text("from mlx_lm.models.qwen3 import Model, ModelArgs\n")
    box.edit('path = "base"', 'path = "base"\ntrust_remote_code = true')
    assert "m_learned" in rows(run(box, "model:m_learned"))


# -- what a step reads while it runs -----------------------------------------------------------------------


def learn(box: Sandbox) -> Project:
    """Builds the learned target in this process."""
    loaded = Project.load(box.toml)
    deliver(loaded, "m_learned", {"m_learned"}, ("m_f16",), lambda _: None)
    return Project.load(box.toml)


def weights(box: Sandbox) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(box.view("m_learned").glob("*.safetensors"))}


def test_a_source_view_that_is_replaced_while_the_step_runs(
    project: Callable[[str], Sandbox], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step reads a folder of its own: what the name of its source shows meanwhile does not matter."""
    box = project("gptq")
    learn(box)
    expected = weights(box)
    make_adapter(box.root / "adapter", seed=99)
    other = learn(box)
    assert weights(box) != expected
    theirs = records.read_manifest(other.store, other.keys["m_f16"])
    assert theirs is not None
    assert holds(other.store, theirs)
    make_adapter(box.root / "adapter")
    shutil.rmtree(box.root / "store/targets")  # so that it learns again
    real = learned._call

    def flipped(project: Project, plan: TargetPlan, source: Path, scratch: Path, emit: Emit) -> None:
        view = project.store.models / "m_f16"
        mine = records.read_manifest(project.store, Key(str(views.current_key(view))))
        assert mine is not None
        assert mine != theirs
        records.write_manifest(project.store, theirs)
        views.materialize(project.store, view, theirs)
        real(project, plan, source, scratch, emit)
        views.materialize(project.store, view, mine)

    monkeypatch.setattr(learned, "_call", flipped)
    learn(box)
    assert weights(box) == expected


def test_a_source_that_is_edited_while_the_step_runs(
    project: Callable[[str], Sandbox], monkeypatch: pytest.MonkeyPatch
) -> None:
    box = project("gptq")
    real = learned._call

    def edited(project: Project, plan: TargetPlan, source: Path, scratch: Path, emit: Emit) -> None:
        real(project, plan, source, scratch, emit)
        config = source / "config.json"
        config.unlink()
        config.write_text("{}")

    monkeypatch.setattr(learned, "_call", edited)
    with pytest.raises(SourceChanged, match="^model:m_f16: .* changed while it was being read"):
        learn(box)
    assert not box.view("m_learned").exists()
    loaded = Project.load(box.toml)
    assert [m.kind for m in records.manifests(loaded.store)] == ["target"]  # the source
    assert not list(loaded.store.tmp.iterdir())
    assert verify.verify(loaded.store).is_clean


def test_nothing_is_learned_again_after_a_rename(
    project: Callable[[str], Sandbox], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither for the name of the model, nor of the variant, nor of the variant that it is made from."""
    box = project("gptq")
    learn(box)
    expected = weights(box)
    box.edit("[model.m]", "[model.n]")
    box.edit("[variant.learned]", "[variant.best]")
    box.edit("[variant.f16]", "[variant.half]")
    box.edit('from = "f16"', 'from = "half"')
    box.edit('variants = ["f16", "4bit", "5bit", "learned"]', 'variants = ["half", "4bit", "5bit", "best"]')
    monkeypatch.setattr(learned, "_call", lambda *_: pytest.fail("it learns again"))
    loaded = Project.load(box.toml)
    assert [built.made for built in deliver(loaded, "n_best", {"n_best"}, (), lambda _: None)] == [0]
    found = {file.name: file.read_bytes() for file in box.view("n_best").glob("*.safetensors")}
    assert found == expected
    assert not box.view("n_half").exists()
    assert Project.load(box.toml).is_built("n_best")


def test_a_new_chat_template_is_copied_and_nothing_is_learned_again(
    project: Callable[[str], Sandbox], monkeypatch: pytest.MonkeyPatch
) -> None:
    box = project("gptq")
    learn(box)
    expected = weights(box)
    (box.root / "base/chat_template.jinja").write_text("{{ messages }}")
    (box.root / "base/notes.json").write_text("{}")
    config = box.root / "base/config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "eos_token_id": 7}))
    monkeypatch.setattr(learned, "_call", lambda *_: pytest.fail("it learns again"))
    deliver(Project.load(box.toml), "m_learned", {"m_learned"}, (), lambda _: None)
    assert weights(box) == expected
    view = box.view("m_learned")
    assert (view / "chat_template.jinja").read_text() == "{{ messages }}"
    assert (view / "notes.json").is_file()
    assert json.loads((view / "config.json").read_text())["quantization"]["bits"] == 4
