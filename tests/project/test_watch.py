"""Sources that change while a build reads them: nothing of it is recorded, and the next build is right."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import pytest

from builder.build.learned import build_learned
from builder.build.one_pass import build
from builder.build.prepare import prepare_adapter, prepare_base
from builder.console.events import BlockDone, Event
from builder.errors import SourceChanged
from builder.plan.types import TargetPlan
from builder.project.project import Project
from builder.release.delivery import deliver
from tests.build.test_learned import LEARNED
from tests.conftest import Sandbox
from tests.tiny import DECLARATION, make_adapter, make_base

Make = Callable[..., Sandbox]


def quiet(_: Event) -> None:
    pass


def prepared(box: Sandbox) -> Project:
    """A project whose sources are fingerprinted, as a run leaves it before the first target."""
    project = Project.load(box.toml)
    prepare_base(project, project.spec.bases["tiny"], quiet)
    prepare_adapter(project, project.spec.adapters["tuned"], quiet)
    return project


def planned(project: Project, name: str) -> TargetPlan:
    found = project.plan.targets[name]
    assert isinstance(found, TargetPlan)
    return found


@pytest.fixture
def box(sandbox: Make) -> Sandbox:
    made = sandbox(DECLARATION)
    make_base(made.root / "base")
    make_adapter(made.root / "adapter", layers=(0, 1, 2, 3))
    return made


def weights(box: Sandbox, name: str) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(box.view(name).glob("*.safetensors"))}


def config_of_the_base(box: Sandbox) -> Path:
    """A change of config.json that no tensor shows."""
    file = box.root / "base/config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "rope_theta": 5e5}))
    return file


def weights_of_the_base(box: Sandbox) -> Path:
    make_base(box.root / "base", seed=1)
    return box.root / "base/model-00001-of-00002.safetensors"


def end_of_text(box: Sandbox) -> Path:
    """mlx_lm takes eos_token_id into config.json from here."""
    file = box.root / "base/generation_config.json"
    file.write_text(json.dumps({"eos_token_id": 7}))
    return file


def adapter_in_place(box: Sandbox) -> Path:
    """As mlx_lm.lora saves: the same file is written again."""
    make_adapter(box.root / "adapter", layers=(0, 1, 2, 3), seed=100)
    return box.root / "adapter/adapters.safetensors"


def adapter_by_rename(box: Sandbox) -> Path:
    make_adapter(box.root / "new", layers=(0, 1, 2, 3), seed=100)
    return (box.root / "new/adapters.safetensors").replace(box.root / "adapter/adapters.safetensors")


def adapter_cut_short(box: Sandbox) -> Path:
    """In the middle of being written: reading it fails."""
    file = box.root / "adapter/adapters.safetensors"
    os.truncate(file, file.stat().st_size // 4)
    return file


def adapter_scale(box: Sandbox) -> Path:
    file = box.root / "adapter/adapter_config.json"
    file.write_text(file.read_text().replace("2.0", "4.0"))
    return file


CHANGES = {
    "base:tiny": (config_of_the_base, weights_of_the_base, end_of_text),
    "adapter:tuned": (adapter_in_place, adapter_by_rename, adapter_cut_short, adapter_scale),
}
CASES = [(source, change) for source, changes in CHANGES.items() for change in changes]


@pytest.mark.parametrize(("source", "change"), CASES, ids=lambda case: getattr(case, "__name__", ""))
def test_a_source_that_changes_after_it_was_planned(
    box: Sandbox, source: str, change: Callable[[Sandbox], Path]
) -> None:
    project = prepared(box)
    target = planned(project, "m_4bit")
    change(box)
    with pytest.raises(SourceChanged, match=rf"^{source}: .* changed while it was being read"):
        build(project, [target], quiet)
    assert not list((box.root / "store/targets").rglob("*.toml"))


@pytest.mark.parametrize(
    ("source", "change"),
    [("base:tiny", weights_of_the_base), *(("adapter:tuned", c) for c in CHANGES["adapter:tuned"])],
    ids=lambda case: getattr(case, "__name__", ""),
)
def test_a_source_that_changes_during_the_pass(
    box: Sandbox, sandbox: Make, source: str, change: Callable[[Sandbox], Path]
) -> None:
    project = prepared(box)
    former = {path: path.read_bytes() for path in (*box.root.glob("base/*"), *box.root.glob("adapter/*"))}
    done: list[str] = []

    def when_a_block_is_done(event: Event) -> None:
        if isinstance(event, BlockDone):
            if not done:
                change(box)
            done.append(event.block)

    with pytest.raises(SourceChanged) as caught:
        build(project, [planned(project, "m_4bit")], when_a_block_is_done)
    assert caught.value.fields["source"] == source
    assert 1 <= len(done) < 6
    assert not box.view("m_4bit").exists()

    for path, data in former.items():
        path.write_bytes(data)
    again = prepared(box)
    deliver(again, "m_4bit", {"m_4bit"}, (), quiet)
    fresh = sandbox(DECLARATION, "fresh")
    make_base(fresh.root / "base")
    make_adapter(fresh.root / "adapter", layers=(0, 1, 2, 3))
    other = prepared(fresh)
    deliver(other, "m_4bit", {"m_4bit"}, (), quiet)
    assert weights(box, "m_4bit") == weights(fresh, "m_4bit")


SWAPPING = """
from pathlib import Path
from mlx_lm.models.qwen3 import Model, ModelArgs

project = Path({root!r})
if (project / "swap").exists():
    (project / "swap").rename(project / "adapter/adapters.safetensors")
"""


def with_code_that_swaps(box: Sandbox) -> None:
    """The model's own code is read after the plan is made, and before its first weight."""
    config = box.root / "base/config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "model_file": "mine.py"}))
    (box.root / "base/mine.py").write_text(SWAPPING.format(root=str(box.root)))
    box.edit('path = "base"', 'path = "base"\ntrust_remote_code = true')


def to_be_swapped(box: Sandbox) -> Path:
    """The adapter, which the model's code will replace the next time that it is loaded."""
    adapter = box.root / "adapter/adapters.safetensors"
    tensors = {name: array * 3 for name, array in dict(mx.load(str(adapter))).items()}
    mx.save_safetensors(str(box.root / "swap.safetensors"), tensors)
    (box.root / "swap.safetensors").rename(box.root / "swap")
    return adapter


def test_an_adapter_swapped_while_doit_loads_the_model(box: Sandbox) -> None:
    with_code_that_swaps(box)
    assert box.doit("base:tiny", "adapter:tuned").code == 0
    adapter = to_be_swapped(box)
    ran = box.doit("model:m_4bit")
    assert f"adapter:tuned: {adapter} changed while it was being read" in " ".join(ran.text.split())
    assert ran.code == 2
    assert "Traceback" not in ran.text
    assert not box.view("m_4bit").exists()
    ran = box.doit("model:m_4bit")
    assert ran.code == 0, ran.text


def test_an_adapter_swapped_while_doit_measures_the_unquantized_model(box: Sandbox) -> None:
    with_code_that_swaps(box)
    box.toml.write_text(
        box.toml.read_text()
        + 'suites = ["fidelity"]\n\n[suite.fidelity]\nkind = "fidelity"\ndata = "rows.jsonl"\n'
    )
    asked = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "yes"}]
    (box.root / "rows.jsonl").write_text(json.dumps({"messages": asked, "label": "yes"}) + "\n")
    assert box.doit("model:m_4bit").code == 0
    adapter = to_be_swapped(box)
    ran = box.doit("eval:m_4bit")
    assert f"adapter:tuned: {adapter} changed while it was being read" in " ".join(ran.text.split())
    assert ran.code == 2
    assert not list((box.root / "store/evals").rglob("*.json"))
    assert '"reference"' not in "".join(
        f.read_text() for f in (box.root / "store/actions").rglob("*") if f.is_file()
    )


def test_a_text_that_changes_before_its_method_reads_it(sandbox: Make) -> None:
    box = sandbox(DECLARATION.replace('"5bit"]', '"5bit", "learned"]') + LEARNED.format(method="gptq"))
    make_base(box.root / "base")
    make_adapter(box.root / "adapter")
    text = box.root / "text.txt"
    text.write_text("some words " * 50)
    project = prepared(box)
    learned = planned(project, "m_learned")
    build(project, [planned(project, "m_f16")], quiet)
    text.write_text("other words " * 50)
    with pytest.raises(SourceChanged, match=r"variant.learned: .*text.txt changed while"):
        build_learned(project, learned, quiet)
    assert not box.view("m_learned").exists()
    assert not list((box.root / "store/tmp").glob("*"))
