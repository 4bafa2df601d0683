"""What a pass reads of the files of a base, in which order, and which of them it hashes meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from builder.build.feed import Job
from builder.errors import BuildError
from builder.keys import Digest
from builder.plan.types import TargetPlan
from builder.project.peaks import stays_cached
from builder.project.project import Project
from builder.project.watch import base_folder
from builder.sources import base as bases
from builder.weights import pieces
from builder.weights.pieces import Room
from builder.weights.safetensors import SafetensorsFile, read_header

if TYPE_CHECKING:
    from builder.engine.stream import Stream

Hashed = Callable[[Digest], None]


def _nothing() -> None:
    """No file is hashed apart from the jobs."""


@dataclass(frozen=True)
class Reading:
    """Spans to read one after the other, what each block gets of them, and the blocks as they become whole.

    direct: past the page cache. missing: bytes of the base that mlx reads itself. hashed: waits for the files
    that are hashed meanwhile, apart from the jobs.
    """

    jobs: tuple[Job, ...]
    rooms: Mapping[str, Room]
    order: tuple[str, ...]
    direct: bool
    missing: int = 0
    hashed: Callable[[], None] = _nothing

    @property
    def open_bytes(self) -> int:
        """The most bytes of blocks that are begun and not whole."""
        sizes = {block: room.nbytes for block, room in self.rooms.items()}
        return pieces.open_bytes(self.open_blocks, sizes)

    @cached_property
    def open_blocks(self) -> Mapping[str, Collection[str]]:
        """Block -> the blocks that are begun before it is whole, itself included."""
        return pieces.open_blocks([job.span for job in self.jobs])


def shards_of(project: Project, plan: TargetPlan) -> list[SafetensorsFile]:
    """The shards of a base, by their headers. mlx reads a file whose header is not as it should be."""
    base = project.spec.bases[plan.target.model.base]
    found = []
    for path in bases.list_files(base, base_folder(project, plan)).weights:
        if path.suffix == ".safetensors":
            with suppress(BuildError):
                found.append(read_header(path, f"base.{base.name}"))
    return found


def by_blocks(project: Project, plan: TargetPlan, stream: Stream, wanted: Collection[str]) -> Reading:
    """Reads the blocks in the order of the model, and nothing else. A GPU reads itself: mlx does it there."""
    blocks = plan.base.structure.blocks
    if not stream.on_cpu:
        return Reading((), {}, blocks, direct=False)
    files = shards_of(project, plan)
    rooms = _rooms(plan, stream, files, wanted)
    jobs = [Job(span) for block in blocks if block in rooms for span in pieces.spans(rooms[block].pieces)]
    return Reading(tuple(jobs), rooms, blocks, _is_large(files))


def by_files(
    project: Project,
    plan: TargetPlan,
    stream: Stream,
    wanted: Collection[str],
    hashing: Mapping[Path, Hashed],
) -> Reading:
    """Reads the files of `hashing` from end to end and hashes them, and of the others what blocks need."""
    files = shards_of(project, plan)
    rooms = _rooms(plan, stream, files, wanted)
    needed = [piece for room in rooms.values() for piece in room.pieces]
    jobs: list[Job] = []
    for file in files:
        if (hashed := hashing.get(file.path)) is not None:
            size = file.path.stat().st_size
            jobs.append(Job(pieces.whole(file.path, size, needed), hashed))
        else:
            jobs += map(Job, pieces.spans(piece for piece in needed if piece.path == file.path))
    order = tuple(pieces.open_blocks([job.span for job in jobs]))
    others = tuple(block for block in plan.base.structure.blocks if block not in order)
    everything = _rooms(plan, stream, files, plan.base.structure.blocks)
    missing = pieces.missing(files, (piece for room in everything.values() for piece in room.pieces))
    return Reading(tuple(jobs), rooms, (*order, *others), _is_large(files), missing)


def _rooms(
    plan: TargetPlan, stream: Stream, files: Iterable[SafetensorsFile], wanted: Collection[str]
) -> dict[str, Room]:
    structure = plan.base.structure
    parameters = [p.tensor for block in wanted for p in structure.by_block[block]]
    return pieces.rooms(stream.sources, parameters, files)


def _is_large(files: Iterable[SafetensorsFile]) -> bool:
    return not stays_cached(sum(file.tensors[-1].end for file in files if file.tensors))
