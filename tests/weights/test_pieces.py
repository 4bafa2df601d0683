"""Where bytes lie, in which order they are read, and how much of a model is in memory meanwhile."""

from __future__ import annotations

from pathlib import Path

from builder.weights import pieces
from builder.weights.safetensors import SafetensorsFile, TensorInfo
from builder.weights.structure import TensorSpec

ONE, TWO = Path("one.safetensors"), Path("two.safetensors")
FILES = [
    SafetensorsFile(ONE, (
        TensorInfo("layers.0.experts.0.up.weight", "BF16", (2, 4), 100, 116),
        TensorInfo("layers.0.experts.1.up.weight", "BF16", (2, 4), 116, 132),
        TensorInfo("layers.1.norm.weight", "F32", (4,), 132, 148),
    )),
    SafetensorsFile(TWO, (TensorInfo("layers.1.up.weight", "BF16", (4, 4), 64, 96),)),
]  # fmt: skip
STACK = TensorSpec("layers.0.stack.weight", "BF16", (2, 2, 4))
NORM, UP = TensorSpec("layers.1.norm.weight", "F32", (4,)), TensorSpec("layers.1.up.weight", "BF16", (4, 4))
SOURCES = {
    STACK.name: ("layers.0.experts.1.up.weight", "layers.0.experts.0.up.weight"),
    NORM.name: (NORM.name,),
    UP.name: (UP.name,),
}


def test_a_stack_is_read_in_its_order() -> None:
    found = pieces.rooms(SOURCES, [STACK, NORM, UP], FILES)
    first, second = found["layers.0"].pieces
    assert (first.start, first.at, second.start, second.at) == (116, 0, 100, 16)
    assert found["layers.0"].sizes == {STACK.name: 32}
    assert found["layers.0"].units == {STACK.name: 16}  # one expert
    assert found["layers.1"].nbytes == 48


def test_what_does_not_fit_is_left_to_mlx() -> None:
    wrong = TensorSpec(NORM.name, "BF16", (4,))  # another type than in the file
    short = TensorSpec(STACK.name, "BF16", (3, 2, 4))
    absent = TensorSpec("layers.2.up.weight", "BF16", (4, 4))
    sources = {**SOURCES, absent.name: (absent.name,)}
    assert pieces.rooms(sources, [wrong, short, absent], FILES) == {}
    assert pieces.rooms({}, [STACK], FILES) == {}


def test_near_pieces_are_one_span() -> None:
    found = pieces.rooms(SOURCES, [STACK, NORM, UP], FILES)
    (span,) = pieces.spans(found["layers.0"].pieces)
    assert (span.path, span.start, span.end) == (ONE, 100, 132)
    assert [piece.start for piece in span.pieces] == [100, 116]
    far = pieces.Piece(ONE, 132 + pieces.GAP + 1, 132 + pieces.GAP + 9, "b", "p", 0)
    assert len(pieces.spans([*found["layers.0"].pieces, far])) == 2


def test_the_order_in_which_files_complete_blocks() -> None:
    found = pieces.rooms(SOURCES, [STACK, NORM, UP], FILES)
    everything = [piece for room in found.values() for piece in room.pieces]
    order = [pieces.whole(ONE, 148, everything), pieces.whole(TWO, 96, everything)]
    assert [(span.start, span.end) for span in order] == [(0, 148), (0, 96)]
    both = frozenset(("layers.0", "layers.1"))
    one_by_one = {"layers.0": {"layers.0"}, "layers.1": {"layers.1"}}
    assert list(pieces.open_blocks(order).items()) == list(one_by_one.items())
    reverse = pieces.open_blocks(list(reversed(order)))
    assert list(reverse.items()) == [("layers.0", both), ("layers.1", {"layers.1"})]
    assert pieces.open_bytes(pieces.open_blocks(order), {"layers.0": 32, "layers.1": 48}) == 48
    assert pieces.open_bytes(reverse, {"layers.0": 32, "layers.1": 48}) == 80
    assert pieces.missing(FILES, everything) == 0
    assert pieces.missing(FILES, found["layers.0"].pieces) == 48
