"""What a run would do and cost, from stores in every state. Nothing is built, and mlx is not loaded."""

from __future__ import annotations

import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest

from builder.project import speed
from builder.project.forecast import Forecast, LearnedForecast, forecast
from builder.project.peaks import RESIDENT
from builder.project.project import Project
from builder.store import blobs, pins
from builder.store.care import drop
from builder.store.disk import capability
from tests.toy import (
    BASE_BYTES,
    DECLARATION,
    LEARNED,
    SHAPES,
    build,
    make_blocks,
    make_toy,
    planned,
    prepared,
    save_adapter,
)

WITH_LEARNED = DECLARATION.replace('"8bit"]', '"8bit", "dwq"]') + LEARNED
PLAIN = '\n[model.plain]\nbase = "toy"\nvariants = ["4bit"]\n'


def made(folder: Path, declaration: str = DECLARATION) -> Project:
    return prepared(make_toy(folder / "project", declaration))


def again(project: Project) -> Project:
    return Project.load(project.spec.file)


def held(project: Project) -> int:
    return sum(blobs.present(project.store).values())


def bytes_of_block(block: str) -> int:
    """In the base, which is bfloat16."""
    sizes = {"embed": 128 * 64, "layers.0": 64 * 128 + 64, "layers.1": 64 * 128 + 64}
    assert sum(sizes.values()) * 2 == BASE_BYTES
    assert len(SHAPES) == 5
    return 2 * sizes[block]


def test_everything_in_one_pass(tmp_path: Path) -> None:
    project = made(tmp_path)
    said = forecast(project)
    (one,) = said.passes
    size = sum(planned(project, name).size for name in ("m_4bit", "m_8bit"))
    assert (one.model, one.targets) == ("m", ("m_4bit", "m_8bit"))  # the intermediate only on demand
    assert (one.make, one.reuse) == (6, 0)
    assert one.read == BASE_BYTES  # every block is walked once, for both
    assert one.write == size
    assert one.memory > RESIDENT
    assert one.seconds is None  # this machine has no record yet
    assert (said.learned, said.relink, said.prepare, said.refused, said.built) == ((),) * 5
    assert (said.before, said.after) == (held(project), held(project) + size)
    assert not said.is_empty
    assert said.fits


def test_views_that_are_copies_need_room_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = made(tmp_path)
    assert forecast(project).copies == 0
    monkeypatch.setattr(capability, "links", lambda folder: False)
    said = forecast(project)
    assert said.copies == sum(planned(project, name).whole_size or 0 for name in ("m_4bit", "m_8bit")) > 0
    needed = said.after - said.before + said.copies
    assert replace(said, free=needed).fits
    assert not replace(said, free=needed - 1).fits


def test_what_is_asked_for_by_name_alone(tmp_path: Path) -> None:
    project = made(tmp_path)
    (one,) = forecast(project, ["m_f16"]).passes
    assert (one.targets, one.write) == (("m_f16",), planned(project, "m_f16").size)
    assert forecast(project, ["m_8bit", "m_4bit"]).passes[0].targets == ("m_4bit", "m_8bit")


def test_blocks_that_are_there_are_reused_and_not_read(tmp_path: Path) -> None:
    project = made(tmp_path)
    make_blocks(project, "m_4bit", 2)
    (one,) = forecast(project, ["m_4bit"]).passes
    assert (one.make, one.reuse) == (1, 2)
    assert one.read == bytes_of_block("layers.1")
    assert one.write == planned(project, "m_4bit").actions[2].size
    (both,) = forecast(project).passes
    assert (both.make, both.reuse, both.read) == (4, 2, BASE_BYTES)


def test_a_record_without_its_blob_is_no_reuse(tmp_path: Path) -> None:
    project = made(tmp_path)
    build(project, "m_4bit")
    drop.drop(project.store, {"m_4bit": [planned(project, "m_4bit").key]})
    (one,) = forecast(again(project), ["m_4bit"]).passes
    assert (one.make, one.reuse) == (3, 0)


def test_models_that_share_blocks_make_them_once(tmp_path: Path) -> None:
    """An adapter of the last block: the plain base has the others in common with it."""
    project = made(tmp_path, DECLARATION + PLAIN)
    first, second = forecast(project, ["m_4bit", "plain_4bit"]).passes
    assert (first.model, first.make, first.reuse) == ("m", 3, 0)
    assert (second.model, second.make, second.reuse) == ("plain", 1, 2)
    assert second.read == bytes_of_block("layers.1")
    assert second.write == planned(project, "plain_4bit").actions[2].size


def test_nothing_to_do(tmp_path: Path) -> None:
    project = made(tmp_path)
    for name in ("m_4bit", "m_8bit"):
        build(project, name)
    said = forecast(again(project))
    assert said.is_empty
    assert said.built == ("m_4bit", "m_8bit")
    assert said.before == said.after == held(project)
    assert forecast(again(project), ["m_8bit"]).built == ("m_8bit",)


def test_a_view_that_is_gone_is_linked_again(tmp_path: Path) -> None:
    project = made(tmp_path)
    build(project, "m_4bit")
    shutil.rmtree(project.store.models / "m_4bit")
    said = forecast(again(project), ["m_4bit"])
    assert (said.relink, said.passes, said.built) == (("m_4bit",), (), ())
    assert said.before == said.after
    assert not said.is_empty


def test_a_former_adapter_is_linked_again(tmp_path: Path) -> None:
    """What was built once at this key is still in the store."""
    project = made(tmp_path)
    build(project, "m_4bit")
    save_adapter(tmp_path / "project/adapter", fill=1)
    (one,) = forecast(again(project), ["m_4bit"]).passes
    assert (one.make, one.reuse) == (1, 2)
    changed = again(project)
    build(changed, "m_4bit")
    save_adapter(tmp_path / "project/adapter", fill=0)
    assert forecast(again(project), ["m_4bit"]).relink == ("m_4bit",)


def test_sources_that_must_be_read_first(tmp_path: Path) -> None:
    project = Project.load(make_toy(tmp_path / "project"))
    said = forecast(project)
    reason = "base:toy has not been inspected yet"
    assert said.prepare == (("m_4bit", reason), ("m_8bit", reason))
    assert (said.passes, said.refused) == ((), ())
    assert not said.is_empty


def test_what_can_never_be_built_as_it_is_declared(tmp_path: Path) -> None:
    project = made(tmp_path, DECLARATION + PLAIN)
    shutil.rmtree(tmp_path / "project/adapter")
    said = forecast(again(project), ["m_4bit", "plain_4bit"])
    ((name, reason),) = said.refused
    assert name == "m_4bit"
    assert reason.startswith("adapter:tuned cannot be used: ")
    assert said.prepare == ()
    assert [one.targets for one in said.passes] == [("plain_4bit",)]  # as if nothing were wrong


# -- learned quantizers ------------------------------------------------------------------------------------


def test_a_learned_target_needs_its_source_first(tmp_path: Path) -> None:
    project = made(tmp_path, WITH_LEARNED)
    said = forecast(project, ["m_dwq"])
    source = planned(project, "m_f16")
    step = LearnedForecast("m_dwq", "dwq", "m_f16", source.size, prunes=True)
    assert said.learned == (step,)
    (one,) = said.passes
    assert (one.targets, one.write) == (("m_f16",), source.size)
    assert said.after == said.before + source.size  # also what is deleted at the end; not what dwq writes
    (together,) = forecast(project).passes
    assert together.targets == ("m_4bit", "m_8bit", "m_f16")

    pins.pin(project.store, "m_f16")
    assert forecast(project, ["m_dwq"]).learned == (replace(step, prunes=False),)
    build(project, "m_f16")
    said = forecast(again(project), ["m_dwq"])
    assert (said.learned, said.passes) == ((replace(step, prunes=False),), ())
    assert said.built == ()  # the source was not asked for


def test_a_source_that_is_no_intermediate_stays(tmp_path: Path) -> None:
    project = made(tmp_path, WITH_LEARNED.replace("intermediate = true\n", ""))
    (step,) = forecast(project, ["m_dwq"]).learned
    assert not step.prunes


def test_a_learned_target_that_is_there(tmp_path: Path) -> None:
    project = made(tmp_path, WITH_LEARNED)
    build(project, "m_dwq")
    said = forecast(again(project), ["m_dwq"])
    assert (said.built, said.is_empty) == (("m_dwq",), True)  # its source is not missed
    shutil.rmtree(project.store.models / "m_dwq")
    said = forecast(again(project), ["m_dwq"])
    assert (said.relink, said.learned, said.passes) == (("m_dwq",), (), ())


def test_a_learned_target_without_its_text(tmp_path: Path) -> None:
    project = made(tmp_path, WITH_LEARNED)
    (tmp_path / "project/text.txt").unlink()
    said = forecast(again(project), ["m_dwq"])
    ((name, reason),) = said.refused
    assert name == "m_dwq"
    assert "text.txt does not exist" in reason
    assert (said.learned, said.passes) == ((), ())  # nothing is made for it


# -- time and room -----------------------------------------------------------------------------------------


def test_seconds_from_the_median_of_former_passes(tmp_path: Path) -> None:
    project = made(tmp_path)
    for seconds in (1.0, 2.0, 50.0):
        speed.note(project.cache, speed.Pass(read=600, written=400, seconds=seconds))
    (one,) = forecast(again(project)).passes
    assert one.seconds == pytest.approx(2.0 / 1000 * (one.read + one.write))


def test_a_disk_without_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = made(tmp_path)
    need = forecast(project).after - forecast(project).before
    usage = namedtuple("usage", "total used free")
    for free, fits in ((need, True), (need - 1, False)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: usage(0, 0, free))
        said = forecast(project)
        assert (said.free, said.fits) == (free, fits)


def test_room_is_no_question_where_nothing_is_written() -> None:
    assert Forecast((), (), (), (), (), (), before=10, after=10, free=0).fits
