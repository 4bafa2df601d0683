"""How much memory a pass takes at its peak, told before it begins: upper estimates, in bytes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from importlib.util import find_spec
from itertools import pairwise
from math import prod
from pathlib import Path
from types import MappingProxyType

from builder.errors import BuildError
from builder.machine import memory
from builder.plan.types import Action, TargetPlan
from builder.project.project import Project
from builder.project.toolchain import device
from builder.sources import base as bases
from builder.sources.adapters.reading import read_adapter
from builder.spec.types import Base, GgufSource
from builder.weights.pieces import Piece, Span, open_blocks, open_bytes
from builder.weights.safetensors import read_header
from builder.weights.structure import CODE_OF_DTYPE, block_of

RESIDENT = 400 << 20  # Python, mlx and mlx-lm themselves
LOOPS = 100 << 20  # the compiled loops of calibrated rounding, and numpy's BLAS
_FACTORS = 52  # bytes for each pair of columns, while moments are inverted: numpy does that in float64
COPIES = 2  # while one portion of a block is written, the next is computed
WINDOWS = 128 << 20  # what a pass reads into (builder.build.feed)
PORTION = 128 << 20  # bytes of output that are computed at once (builder.build.blocks.portions)
SPREAD = 2  # blocks of the largest size that may be begun and not whole, as the files cut them
CACHED = 4  # a base of more than this part of memory is not kept in the page cache
_NONE: Mapping[str, int] = MappingProxyType({})
_OPEN: Mapping[str, Collection[str]] = MappingProxyType({})


def peak_memory(
    actions: Iterable[Action],
    source: Mapping[str, int],
    budget: int | None = None,
    fused: Mapping[str, int] = _NONE,
    begun: int = 0,
) -> int:
    """An upper estimate, in bytes, of the process at its peak.

    begun: bytes of blocks that the files begin before the block in front of them is whole (`first_bytes`).
    """
    todo = list(actions)
    peaks = block_peaks(todo, source, fused)
    ahead = reads_ahead(todo, source, budget, fused)
    return max((peak + max(ahead.get(block, 0), begun) for block, peak in peaks.items()), default=RESIDENT)


def reads_ahead(
    actions: Iterable[Action],
    source: Mapping[str, int],
    budget: int | None,
    fused: Mapping[str, int] = _NONE,
) -> Mapping[str, int]:
    """Block -> bytes of the next one to make, where both are allowed in memory: it is read meanwhile."""
    peaks = block_peaks(actions, source, fused)
    order = [block for block in source if block in peaks]
    return {
        block: source[following]
        for block, following in pairwise(order)
        if budget is None or peaks[block] + source[following] <= budget
    }


def at_once(
    actions: Iterable[Action],
    source: Mapping[str, int],
    budget: int | None,
    begun: int = 0,
    opened: Mapping[str, Collection[str]] = _OPEN,
) -> tuple[frozenset[str], frozenset[str]]:
    """The blocks of which memory may hold everything that is made of them, in place of their weights. And
    those that are made only when everything before them is written.

    The rows of the first are computed as they are read (builder.engine.by_rows). All blocks, where that takes
    no more than `peak_memory` tells, else those that are made into less than their weights. begun: as there.
    opened: the blocks in their order, if that is not the order of the model, with those that are begun before
    each is whole.
    """
    todo = list(actions)
    made = made_bytes(todo)
    order = {block: set(opened.get(block, ())) | {block} for block in [*opened, *made] if block in made}
    held = {block: sum(made.get(each, 0) for each in those) for block, those in order.items()}
    room = peak_memory(todo, source, budget, begun=begun) - RESIDENT - WINDOWS
    least = max(COPIES * max(made.values(), default=0), max(held.values(), default=0))
    chosen = frozenset(block for block, size in made.items() if least <= room or size <= source[block])
    alone = {now for before, now in pairwise(order) if held[now] + made[before] > max(room, least)}
    return chosen, chosen & alone


def made_bytes(actions: Iterable[Action]) -> dict[str, int]:
    """Block -> bytes of everything that is made of it."""
    made: dict[str, int] = {}
    for action in actions:
        made[action.block] = made.get(action.block, 0) + action.size
    return made


def block_peaks(
    actions: Iterable[Action], source: Mapping[str, int], fused: Mapping[str, int] = _NONE
) -> Mapping[str, int]:
    """Block -> upper estimate of the process while it is made: its weights, two portions, and what `fused`
    (see `copies`) says."""
    todo = list(actions)
    made, largest = made_bytes(todo), dict[str, int]()
    for action in todo:
        largest[action.block] = max(largest.get(action.block, 0), action.size)

    def results(block: str) -> int:
        """Portions of several sizes share arrays of the largest one, of which one more may be there."""
        return min(COPIES * made[block], (COPIES + 1) * max(PORTION, largest[block]))

    return {block: RESIDENT + source[block] + results(block) + fused.get(block, 0) for block in made}


def copies(project: Project, plans: Iterable[TargetPlan]) -> Mapping[str, int]:
    """Block -> bytes of what is computed from its weights and is not written: an upper estimate.

    The compiled kernels fuse in place and quantize without a copy. mlx makes a fused copy, a cast copy, and
    the delta of an adapted stack of experts. A variant in the type of the base is written from its weights,
    which stay until then.
    """
    found: dict[str, int] = {}
    for plan in plans:
        source = plan.base.whole.block_nbytes
        delta, whole = deltas(plan), not _kernels_suffice(project, plan)
        for block, size in source.items():
            more = size + delta.get(block, 0) if whole else 0
            more += size if plan.base.pruned else 0  # blocks with all experts, before some are cut out
            found[block] = max(found.get(block, 0), more)
    return found


def _kernels_suffice(project: Project, plan: TargetPlan) -> bool:
    """Whether the kernels do everything that is large: no mlx in between, and no weight as it is."""
    name, structure = plan.target.model.adapter, plan.base.whole
    code = CODE_OF_DTYPE[plan.dtype] if plan.dtype is not None else None
    same = all(p.tensor.dtype in (code, None) or not p.castable for p in structure.parameters) or code is None
    kernels = device() == "cpu" and find_spec("numba") is not None
    settings = {(how.mode, how.bits, how.group_size) for how in plan.quantization.values()}
    if not (kernels and same and settings) or any(not _is_exact(*each) for each in settings):
        return False
    if name is None:
        return True
    with suppress(BuildError):
        return read_adapter(project.adapter(name)).fine_tune_type == "lora"
    return False


def _is_exact(mode: str, bits: int, group: int) -> bool:
    """As builder.engine.kernels.cpu.SETTINGS, which would load numpy."""
    return mode == "affine" and bits in (2, 3, 4, 5, 6, 8) and group in (32, 64, 128)


def begun_bytes(base: Base) -> int | None:
    """The most bytes of blocks that are begun and not whole, where files are read from end to end.

    As their headers tell: a tensor belongs to the block of its name. Where this is too much, 0 for a base
    that is hashed beside the pass, and None for one that is too large for that. Raises SourceError.
    """
    if isinstance(base.source, GgufSource) or (directory := bases.locate(base)) is None:
        return None
    shards = [p for p in bases.list_files(base, directory).weights if p.suffix == ".safetensors"]
    order, sizes = [], dict[str, int]()
    for file in (read_header(path, f"base.{base.name}") for path in shards):
        found = [Piece(file.path, t.start, t.end, block_of(t.name), t.name, 0) for t in file.tensors]
        order.append(Span(file.path, 0, found[-1].end if found else 0, tuple(found)))
        for piece in found:
            sizes[piece.block] = sizes.get(piece.block, 0) + piece.end - piece.start
    begun = open_bytes(open_blocks(order), sizes)
    if not is_spread(begun, max(sizes.values(), default=0)):
        return begun
    return 0 if stays_cached(sum(sizes.values())) else None


def stays_cached(size: int) -> bool:
    """Whether a base of that many bytes stays in the page cache, so that reading it again costs little."""
    return size <= memory() // CACHED


def is_spread(begun: int, largest: int) -> bool:
    """Whether the files cut blocks so that more of them would be in memory than a pass may hold."""
    return begun > SPREAD * largest + PORTION


def deltas(plan: TargetPlan) -> Mapping[str, int]:
    """Block -> bytes of the largest delta of an adapted stack of experts.

    mlx computes it in float32, twice the size of the stack itself; the kernels do without.
    """
    found: dict[str, int] = {}
    for block in plan.adapter.slices if plan.adapter else ():
        for parameter in plan.base.whole.by_block.get(block, ()):
            shape, path = parameter.tensor.shape, parameter.tensor.name.removesuffix(".weight")
            if len(shape) == 3 and plan.adapter is not None and path in plan.adapter.paths:
                found[block] = max(found.get(block, 0), 4 * prod(shape))
    return found


def rounding_memory(plan: TargetPlan, states: int = 1) -> int:
    """An upper estimate, in bytes, of what a text needs at its peak. 0 for a target that is made without one.

    What a walk takes. Besides, the second moments of the inputs of experts, and what is factored for the
    widest weight. `states`: how often the hidden states of the text are in memory. They are once at least,
    and three times at most, if there is room.
    """
    how = plan.target.variant.text
    if how is None or how.nearest:
        return 0
    if plan.gguf is not None:  # an importance matrix needs no more than a walk
        return walking_memory(plan, states)
    structure = plan.base.structure
    shapes = ([p.tensor.shape for p in each] for each in structure.by_block.values())
    experts = max((sum(s[0] * s[-1] ** 2 for s in each if len(s) == 3) for each in shapes), default=0)
    factors = _FACTORS * max(structure.widths, default=0) ** 2
    return walking_memory(plan, states) + 4 * experts + factors


def walking_memory(plan: TargetPlan, states: int = 1, models: int = 1) -> int:
    """An upper estimate, in bytes, of a pass that runs the text of a target through it, layer by layer.

    What lies outside of the layers stored and as codes, for a size that is asked for in float32, exact and
    rounded. The largest layer in float32, exact, rounded and as codes. `states` as for `rounding_memory`.
    `models`: of how many models what lies outside of the layers is in memory.
    """
    how = plan.target.variant.text
    assert how is not None, "it has no text"
    structure = plan.base.structure
    elements, layers = structure.block_elements, structure.layers
    outside = sum(size for name, size in elements.items() if name not in layers)
    largest = max((elements[name] for name in layers), default=0)
    hidden = how.samples * how.sequence_length * structure.width
    each = 6 * models if plan.target.variant.goal is None else 12
    return RESIDENT + LOOPS + each * outside + 4 * (4 * largest + states * hidden)


def memory_for(project: Project) -> int:
    """The bytes that a build may use: [build] memory, or else what is free now."""
    return project.spec.build.memory or free_memory()


def free_memory() -> int:
    """Bytes that programs can get now without swapping, or all memory where nobody can tell."""
    with suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return memory()
