"""What the compiled loops and their callers agree on: sizes of working memory, and types of arguments."""

from __future__ import annotations

CHUNK = 2048  # elements at a time: a multiple of every group size, and 8 KiB in float32
TILE = 512  # columns of a weight that are fused at a time
SCRATCH = 9  # pieces of working memory that a loop uses, of CHUNK words

SIGNATURES = {  # i: int64, p: pointer
    "quantize_span": "ippiiipipipipp",
    "dequantize_span": "ipppiiiipp",
    "widen_span": "ipiip",
    "fuse_rows": "ipppiiiipp",
}
SIZES = {"bfloat16": 16, "float16": 16, "float32": 32}  # bits of a stored value: there are loops for each


class CannotCompile(RuntimeError):
    """The loops cannot be used here, because numba or LLVM is not as expected."""
