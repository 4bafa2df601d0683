"""Blocks of the store that a bad disk changed: the seal of their files is whole, and their bytes are not."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from builder.build.calibrated import build_calibrated, build_one
from builder.build.exact import build_exact
from builder.build.prepare import prepare_target
from builder.console.events import Event, Note, silent
from builder.errors import StoreError
from builder.plan.types import TargetPlan
from builder.project.project import Project
from builder.store import blobs, records
from builder.store.holdings import usable_record
from tests.build.test_calibrated import ROUND, fill
from tests.build.test_experts import DECLARATION as EXPERTS
from tests.build.test_experts import build, planned
from tests.build.test_gguf import make
from tests.build.test_one_pass import DECLARATION as CALIBRATED
from tests.build.test_one_pass import holding
from tests.conftest import Sandbox
from tests.mixture import make_adapter, make_mixture

Make = Callable[[str], Sandbox]


@pytest.fixture
def mixture(sandbox: Make) -> Sandbox:
    """A project with a mixture of experts, whose blocks with all experts are in the store."""
    box = sandbox(EXPERTS)
    make_mixture(box.root / "base")
    make_adapter(box.root / "adapter")
    (box.root / "text.jsonl").write_text("".join(f'{{"text": "some words {row}"}}\n' for row in range(12)))
    build(box, "m_4bit")
    return box


def flip(project: Project, plan: TargetPlan, block: str, at: int = -1) -> Callable[[], None]:
    """Changes a byte of a stored block as a bad disk would. Returns what puts it back."""
    key = next(action.key for action in plan.actions if action.block == block)
    record = usable_record(project.store, key)
    assert record is not None
    place = blobs.path(project.store, record.blob.digest)
    content = place.read_bytes()

    def write(data: bytes) -> None:
        status = place.stat()
        place.chmod(0o644)
        place.write_bytes(data)
        os.utime(place, ns=(status.st_atime_ns, status.st_mtime_ns))

    wrong = bytearray(content)
    wrong[at] ^= 1
    write(bytes(wrong))
    assert usable_record(project.store, key) == record  # a stat does not show it
    return lambda: write(content)


def refused(run: Callable[[], object]) -> None:
    with pytest.raises(StoreError, match="its bytes do not match its name") as caught:
        run()
    assert "\n" not in caught.value.message
    assert caught.value.hint_text == "Run `doit verify --repair`."


@pytest.mark.parametrize("at", [-1, 9, 0])  # in a tensor, in the header, in the length of the header
def test_no_experts_are_cut_out_of_a_damaged_block(mixture: Sandbox, at: int) -> None:
    repair = flip(Project.load(mixture.toml), planned(mixture, "m_4bit"), "model.layers.0", at)
    refused(lambda: build(mixture, "m_small"))
    project = Project.load(mixture.toml)
    cut = [action.key for action in planned(mixture, "m_small").actions if action.whole]
    assert len(cut) == 2
    assert records.read(project.store, cut[0]) is None
    assert records.read_manifest(project.store, planned(mixture, "m_small").key) is None
    repair()
    assert build(mixture, "m_small") == {"m_small": 2}


def test_cutting_says_what_it_waits_for(mixture: Sandbox) -> None:
    build(mixture, "m_half")  # measures the experts
    other = holding(mixture)
    said: list[str] = []

    class Heard(list[Event]):
        def append(self, event: Event) -> None:
            if isinstance(event, Note) and "waiting" in event.text:
                said.append(event.text)
                other.communicate("\n")

    assert build(mixture, "m_small", heard=Heard()) == {"m_small": 2}
    assert said == ["m_small: waiting for another run, which builds the same"]


def test_no_gguf_is_made_of_a_damaged_block(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    project = Project.load(make(tmp_path / "project").toml)
    for name in ("m_5bit", "m_same"):
        plan = prepare_target(project, project.spec.target(name), silent)
        if name == "m_5bit":
            build_one(project, plan, silent)
            repair = flip(project, plan, "model.layers.1")
    refused(lambda: build_exact(project, plan, silent))
    assert records.read_manifest(project.store, plan.key) is None
    repair()
    assert build_exact(project, plan, silent).reused == 2  # the embedding and the layer before


def test_no_block_is_rounded_behind_a_damaged_one(sandbox: Make) -> None:
    box = fill(sandbox(CALIBRATED.replace('"5bit"]', '"5bit", "round"]') + ROUND))
    project = Project.load(box.toml)
    plan = prepare_target(project, project.spec.target("m_round"), silent)
    build_calibrated(project, plan, silent)
    records.path(project.store, plan.actions[-1].key).unlink()
    repair = flip(project, plan, "model.layers.1")
    refused(lambda: build_calibrated(project, plan, silent))
    assert records.read(project.store, plan.actions[-1].key) is None
    repair()
    assert build_calibrated(project, plan, silent).made == 1
