"""Variants that are a GGUF: made by block from base and adapter, or of the blocks of a quantized target."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from builder.console.events import silent
from builder.errors import SpecError, StoreError
from builder.evaluate.worker.llama import LlamaCpp
from builder.evaluate.worker.questions import Ask
from builder.gguf import imatrix
from builder.gguf.formats import by_package
from builder.gguf.kquants import by_llama
from builder.gguf.quantizer import Quantizer
from builder.gguf.splits import encode, encoded_size, extents
from builder.gguf.writing import planned, write
from builder.plan.types import TargetPlan, Unresolved
from builder.project.project import Project
from builder.spec.parse import parse_spec
from builder.spec.types import METRICS
from builder.weights.shards import RawTensor
from builder.weights.structure import PACKED, TensorSpec
from tests.build.test_one_pass import blob_digest, built
from tests.conftest import Sandbox, make_sandbox, wait_until
from tests.publish.gguf.models import importance, write_tokenizer
from tests.tiny import BLOCKS, make_adapter, make_base, yes_or_no

gguf = pytest.importorskip("gguf")
DECLARATION = """
[base.tiny]
path = "base"

[adapter.tuned]
base = "tiny"
path = "adapter"

[variant.plain]
dtype = "bfloat16"

[variant.5bit]
bits = 5

[variant.q8]
gguf = "Q8_0"

[variant.q4]
gguf = "Q4_1"

[variant.k]
gguf = "Q4_K_M"

[variant.weighed]
gguf = "Q4_K_M"
calibration = "text.txt"
samples = 4
sequence_length = 16

[variant.same]
gguf = "exact"
of = "5bit"

[model.m]
adapter = "tuned"
variants = ["plain", "5bit", "q8", "q4", "k", "weighed", "same"]

[publish.disk]
target = "m_same"
to = "out"
"""
TOKENS = tuple((7 * i * i + 3 * i + 1) % 256 for i in range(30))


def make(root: Path, layers: int = 4) -> Sandbox:
    box = make_sandbox(root, DECLARATION)
    make_base(box.root / "base", layers=layers)
    write_tokenizer(box.root / "base")
    make_adapter(box.root / "adapter")
    words = [str(number) for number in random.Random(1).sample(range(10**6), 200)]
    (box.root / "text.txt").write_text(" ".join(words))
    return box


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Sandbox:
    """A project with all of its targets."""
    made = make(tmp_path_factory.mktemp("gguf") / "project")
    done = made.doit()
    assert built(done)["m_q8"] == BLOCKS
    return made


def splits_of(view: Path) -> list[Path]:
    return sorted(view.glob("*.gguf"))


def tensors(files: list[Path]) -> dict[str, Any]:
    """Name -> type and bytes, of all files together."""
    found = {}
    for file in files:
        for each in gguf.GGUFReader(file).tensors:
            found[each.name] = (each.tensor_type.name, each.data.tobytes())
    return found


@pytest.mark.parametrize(
    ("target", "wanted", "folder"),
    [
        ("m_q8", "Q8_0", "m_plain"),
        ("m_q4", "Q4_1", "m_plain"),
        ("m_k", "Q4_K_M", "m_plain"),
        ("m_weighed", "Q4_K_M", "m_plain"),
        ("m_same", "exact", "m_5bit"),
    ],
)
def test_what_is_made_by_block_is_what_is_made_of_a_folder(
    box: Sandbox, tmp_path: Path, target: str, wanted: str, folder: str
) -> None:
    means = dict(imatrix.read(importance(box)[0])) if target == "m_weighed" else {}
    made, weights = planned(box.view(folder), "m", wanted, weighed=bool(means))
    whole = tmp_path / "whole.gguf"
    with Quantizer() as quantizer:
        how = by_llama(quantizer, made.tensors, means) if wanted == "Q4_K_M" else by_package
        write(whole, made, weights, target="m", wanted=wanted, about={}, step=lambda _: None, quantize=how)
    files = splits_of(box.view(target))
    assert len(files) == BLOCKS + 1
    assert tensors(files) == tensors([whole])
    kinds = {kind for kind, _ in tensors(files).values()}
    assert wanted != "Q4_K_M" or {"Q4_K", "Q6_K", "Q5_0"} < kinds
    pytest.importorskip("xllamacpp")
    logits = []
    for file in (files[0], whole):
        model = LlamaCpp(file, len(TOKENS))
        logits.append(np.array(model.logits(Ask(TOKENS, 1))))
        model.close()
    assert np.array_equal(*logits)


def result_of(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text().rpartition("\n# b3")[0])
    return found


@pytest.mark.slow
def test_every_command_knows_it(box: Sandbox) -> None:
    assert built(box.doit()) == {}
    rows = {row["target"]: row for row in json.loads(box.builder("status", "--json").out)["targets"]}
    assert rows["m_q8"]["state"] == "built"
    assert rows["m_q8"]["bits_per_weight"] > 8
    card = (box.view("m_q8") / "README.md").read_text()
    assert "as GGUF Q8_0 for llama.cpp" in card
    assert "llama-server -m model-00001-of-00007.gguf" in card
    assert "| types | Q8_0 99" in card
    assert "GGUF exact of 5bit" in box.doit("list").out
    assert box.builder("verify").code == 0
    before = {file: file.stat().st_ino for file in (box.root / "store/blobs").rglob("*") if file.is_file()}
    assert box.builder("gc", "--grace", "0").code == 0
    assert all(file.exists() for file in before), "the files of a GGUF have a root"
    digest = blob_digest(box, "m_same", "model-00003-of-00007.gguf")
    (box.root / "store/blobs" / digest[:2] / digest).unlink()
    assert built(box.doit()) == {"m_same": 1}


@pytest.mark.slow
def test_a_new_text_quantizes_again(box: Sandbox, tmp_path: Path) -> None:
    other = Sandbox(tmp_path / "project")
    shutil.copytree(box.root, other.root)
    before = tensors(splits_of(other.view("m_weighed")))
    assert before != tensors(splits_of(other.view("m_k"))), "the importance matrix matters"
    (matrix,) = importance(other)
    assert other.builder("gc", "--grace", "0").code == 0
    assert matrix.exists(), "an importance matrix has a root"
    text = other.root / "text.txt"
    text.write_text("other words " + text.read_text())
    assert "calibration changed" in other.builder("why", "m_weighed").out
    assert built(other.doit("model:m_weighed")) == {"m_weighed": BLOCKS - 1}, "the last norm is float32"
    assert tensors(splits_of(other.view("m_weighed"))) != before
    assert built(other.doit("model:m_k")) == {}


@pytest.mark.slow
def test_what_is_declared_is_what_is_published(box: Sandbox, tmp_path: Path) -> None:
    other = Sandbox(tmp_path / "project")
    shutil.copytree(box.root, other.root)
    shutil.rmtree(other.view("m_plain"))
    text = 'calibration = "text.txt"\nsamples = 4\nsequence_length = 16\n'
    published = '[publish.all]\nmodel = "m"\nto = "all"\ngguf = ["Q4_K_M", "Q8_0", "Q5_0"]\n'
    other.toml.write_text(f"{other.toml.read_text()}\n{published}{text}")
    done = other.doit("publish:all")
    assert done.code == 0, done.text
    assert "an importance matrix is made" not in done.text
    assert done.err.count("blocks to make") == 1, "the blocks of Q5_0, which no variant declares"
    for target, name in (("m_weighed", "m-Q4_K_M.gguf"), ("m_q8", "m-Q8_0.gguf")):
        assert tensors([other.root / "all" / name]) == tensors(splits_of(other.view(target)))
    assert not other.view("m_plain").exists(), "no unquantized model is written"
    assert "all the same" in other.doit("publish:all").out


@pytest.mark.slow
def test_it_writes_what_mlx_writes(box: Sandbox, tmp_path: Path) -> None:
    other = Sandbox(tmp_path / "project")
    shutil.copytree(box.root, other.root)
    (other.root / "rows.jsonl").write_text(yes_or_no(4))
    suite = '[suite.says]\nkind = "generate"\ndata = "rows.jsonl"\nmax_tokens = 12\n\n'
    other.edit("[variant.q4]", f'{suite}[variant.f32]\ngguf = "F32"\n\n[variant.q4]')
    other.edit('"same"]', '"same", "f32"]\nsuites = ["says"]')
    published = '[publish.said]\nmodel = "m"\nto = "said"\ngguf = ["F32"]\n'
    other.toml.write_text(f"{other.toml.read_text()}\n{published}")
    done = other.doit("eval:m_plain", "eval:m_f32")
    assert done.code == 0, done.text
    results = {r["target"]: r for r in map(result_of, (other.root / "store/evals").rglob("*.json"))}
    said = [[sample["said"] for sample in results[name]["samples"]] for name in ("m_plain", "m_f32")]
    assert said[0] == said[1]
    assert any(said[0])
    assert {name for name, _ in results["m_f32"]["figures"].items()} == set(METRICS["generate"])
    sent = other.doit("publish:said")
    assert sent.code == 0, sent.text
    assert "measuring" not in sent.text, "the figures of the declared variant are those of the file"
    assert "says.rate" in (other.root / "said/README.md").read_text()


@pytest.mark.slow
def test_an_exact_file_of_a_target_that_was_made_whole(box: Sandbox, tmp_path: Path) -> None:
    other = Sandbox(tmp_path / "project")
    shutil.copytree(box.root, other.root)
    tuned = (
        '[variant.tuned]\nmethod = "dwq"\nfrom = "plain"\nbits = 4\ncalibration = "text.txt"\nsamples = 4\n'
    )
    other.edit("[variant.q4]", f"{tuned}sequence_length = 16\n\n[variant.q4]")
    other.edit('"same"]', '"same", "tuned"]')
    published = '[publish.whole]\ntarget = "m_tuned"\nto = "whole"\ngguf = ["exact"]\n'
    other.toml.write_text(f"{other.toml.read_text()}\n{published}")
    done = other.doit("publish:whole")
    assert done.code == 0, done.text
    made, weights = planned(other.view("m_tuned"), "m", "exact")
    file = tmp_path / "whole.gguf"
    write(file, made, weights, target="m", wanted="exact", about={}, step=lambda _: None)
    assert tensors([other.root / "whole/m-exact-Q4_1.gguf"]) == tensors([file])
    assert "all the same" in other.doit("publish:whole").out


@pytest.mark.slow
def test_one_file_is_published(box: Sandbox) -> None:
    shown = box.doit("publish:disk", "--dry-run")
    assert "m-exact-Q5_1.gguf" in shown.out, shown.text
    assert box.doit("publish:disk").code == 0
    files = {path.name for path in (box.root / "out").iterdir() if not path.name.startswith(".")}
    assert files == {"m-exact-Q5_1.gguf", "README.md", "attestation.json"}
    assert tensors([box.root / "out/m-exact-Q5_1.gguf"]) == tensors(splits_of(box.view("m_same")))
    assert "all the same" in box.doit("publish:disk").out


@pytest.mark.slow
def test_a_remote_has_it(box: Sandbox, tmp_path: Path) -> None:
    remote = f'\n[remote.team]\nurl = "{tmp_path / "remote"}"\n'
    ann = Sandbox(tmp_path / "ann")
    shutil.copytree(box.root, ann.root)
    ann.toml.write_text(ann.toml.read_text() + remote)
    assert ann.builder("remote", "init").code == 0
    assert ann.builder("push", "m_q8", "m_same").code == 0
    ben = ann.clone("ben")
    pulled = ben.doit("model:m_q8", "model:m_same")
    assert pulled.code == 0, pulled.text
    assert built(pulled) == {"m_q8": 0, "m_same": 0}, "nothing is built, not even what `of` names"
    for target in ("m_q8", "m_same"):
        mine, theirs = splits_of(ben.view(target)), splits_of(ann.view(target))
        assert [each.read_bytes() for each in mine] == [each.read_bytes() for each in theirs]


def test_only_what_changed_is_made_again(box: Sandbox, tmp_path: Path) -> None:
    root = tmp_path / "project"
    shutil.copytree(box.root, root)
    other = Sandbox(root)
    make_adapter(root / "adapter", layers=(3,), seed=8)
    why = other.builder("why", "m_q8")
    assert "adapter changed" in why.out, why.text
    made = built(other.doit("model:m_q8", "model:m_same"))
    assert made == {"m_q8": 2, "m_5bit": 2, "m_same": 2}, "layers 2 and 3; all others are those of before"
    assert other.doit("clean:q8").code == 0
    assert not other.view("m_q8").exists()


def test_a_full_disk_leaves_no_half_file(box: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    from builder.publish.gguf import joining

    def full(file: Path, *_: object, **__: object) -> None:
        file.write_bytes(b"GGUF")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    project = Project.load(box.toml)
    plan = project.plan.targets["m_q4"]
    assert isinstance(plan, TargetPlan)
    monkeypatch.setattr(joining, "write_all", full)
    with pytest.raises(StoreError, match="No space left on device"):
        joining.join(project, plan, {}, silent)
    assert joining.known_joined(project, plan, {}) is None
    assert not [*(box.root / "store/tmp").rglob("*.gguf")]


def test_the_sizes_of_types_are_those_of_the_package() -> None:
    for kind, size in PACKED.items():
        assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]] == size


def test_a_split_is_as_large_as_planned() -> None:
    made = {
        "b.weight": RawTensor("Q8_0", (2, 64), bytes(2 * 2 * 34)),
        "a.weight": RawTensor("F32", (3,), b"\1" * 12),
    }
    specs = [TensorSpec(name, each.dtype, each.shape) for name, each in made.items()]
    content = b"".join(encode(made, 4))
    assert len(content) == encoded_size(specs, 4)
    start, size = extents(specs, 4)["a.weight"]
    assert content[start : start + size] == b"\1" * 12


WRONG = (
    ('of = "5bit"\n', "", 'gguf = "exact" needs of beside it'),
    ('gguf = "Q4_1"', 'gguf = "Q4_1"\nof = "5bit"', 'of is only for gguf = "exact": Q4_1 is made of'),
    ('gguf = "Q4_1"', 'gguf = "Q4_2"', 'gguf = "Q4_2"'),
    ('gguf = "Q4_1"', 'gguf = "Q4_1"\nbits = 4', "gguf excludes bits"),
    (
        'gguf = "Q4_1"',
        'gguf = "Q4_1"\ncalibration = "text.txt"',
        "calibration is for K-quants, and Q4_1",
    ),
    ('"5bit", "q8"', '"q8"', 'variant "same" is made from "5bit", which this model does not list'),
    ('of = "5bit"', 'of = "q8"', 'variant "same" is made from "q8", which is a GGUF'),
    ('target = "m_same"', 'target = "m_same"\ngguf = ["F16"]', '"m_same" is a GGUF already; remove it'),
)


@pytest.mark.parametrize(("old", "new", "said"), WRONG)
def test_what_cannot_be_declared(tmp_path: Path, old: str, new: str, said: str) -> None:
    file = tmp_path / "artifacts.toml"
    assert old in DECLARATION
    file.write_text(DECLARATION.replace(old, new))
    with pytest.raises(SpecError) as refused:
        parse_spec(file)
    assert said in str(refused.value)


def test_what_cannot_be_planned(box: Sandbox, tmp_path: Path) -> None:
    for old, new, target, said in (
        ("bits = 5", "bits = 6", "m_same", "has 6 bits, and a GGUF holds 4 and 5 bits with groups of 32"),
        ("bits = 5", 'mode = "mxfp4"', "m_same", "is quantized in mode mxfp4"),
    ):
        text = box.toml.read_text()
        box.edit(old, new)
        found = Project.load(box.toml).plan.targets[target]
        box.toml.write_text(text)
        assert isinstance(found, Unresolved)
        assert said in str(found.error)


@pytest.mark.slow
def test_a_tokenizer_that_llama_cpp_does_not_know_is_refused_before_any_block(tmp_path: Path) -> None:
    box = make(tmp_path / "project")
    file = box.root / "base/tokenizer.json"
    said = json.loads(file.read_text())
    file.write_text(json.dumps({**said, "pre_tokenizer": {"type": "Whitespace"}}))
    refused = box.doit("model:m_q8")
    assert refused.code == 1, refused.text
    assert "m_q8 as GGUF: its tokenizer cuts text in a way" in refused.text
    made = [file.read_text() for file in (box.root / "store/actions").glob("*/*")]
    assert made
    assert not any('"kind": "block"' in text for text in made)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["m_q8", "m_same"])
def test_a_killed_build_goes_on(tmp_path: Path, target: str) -> None:
    box = make(tmp_path / "project", layers=60)
    if target == "m_same":
        assert box.doit("model:m_5bit").code == 0
    actions = box.root / "store" / "actions"
    before = len(list(actions.glob("*/*")))
    process = subprocess.Popen(
        [sys.executable, "-m", "doit", f"model:{target}"],
        cwd=box.root,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    wait_until(lambda: len(list(actions.glob("*/*"))) >= before + 15, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    finished = {file: file.stat().st_mtime_ns for file in actions.glob("*/*")}
    assert not box.view(target).exists()
    made = built(box.doit(f"model:{target}"))[target]
    assert 0 < made <= 62 - (len(finished) - before - 4)
    assert {file: file.stat().st_mtime_ns for file in finished} == finished, "nothing was done again"
    assert box.builder("verify").code == 0
    plan = Project.load(box.toml).plan.targets[target]
    assert isinstance(plan, TargetPlan)
    assert len(splits_of(box.view(target))) == len(plan.actions) + 1
