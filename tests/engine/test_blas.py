"""OpenBLAS under mlx: used where it gives the same products, put back where it does not."""

from __future__ import annotations

import importlib.util
import os
import sys

import pytest

from tests.conftest import fresh_python

needs_openblas = pytest.mark.skipif(
    not sys.platform.startswith("linux") or importlib.util.find_spec("scipy_openblas32") is None,
    reason="scipy-openblas32 is not installed, or not for this system",
)


def run(code: str) -> str:
    return fresh_python(code).strip()


@needs_openblas
def test_the_same_products() -> None:
    code = """
import mlx.core as mx
from builder.engine import blas
a, b = mx.random.normal((300, 700), key=mx.random.key(0)), mx.random.normal((700, 500), key=mx.random.key(1))
before = (a @ b).tolist()
kind = blas.accelerate()
print(kind.split()[0], mx.allclose(a @ b, mx.array(before), rtol=1e-4, atol=1e-4).item())
"""
    assert run(code) == "openblas True"


@needs_openblas
def test_a_library_that_multiplies_wrongly_is_put_back() -> None:
    """A function of the same signature that writes nothing stands for another calling convention."""
    code = """
import ctypes
import mlx.core as mx
from builder.engine import blas
kind = ctypes.CFUNCTYPE(None)
nothing = kind(lambda: None)
blas._address = lambda library, name: ctypes.cast(nothing, ctypes.c_void_p).value
a, b = mx.random.normal((30, 70), key=mx.random.key(0)), mx.random.normal((70, 50), key=mx.random.key(1))
before = (a @ b).tolist()
print(blas.accelerate(), (a @ b).tolist() == before)
"""
    assert run(code) == "mlx True"


@needs_openblas
def test_threads_are_chosen_unless_somebody_did() -> None:
    """They are recorded, and however many there are, the products are the same to rounding."""
    code = """
import ctypes, os
import mlx.core as mx
from builder.engine import blas
os.environ.pop("OPENBLAS_NUM_THREADS", None)
if {given}:
    os.environ["OPENBLAS_NUM_THREADS"] = "{given}"
said = blas.accelerate()
library = ctypes.CDLL(str(blas._package("scipy_openblas32", "lib/libscipy_openblas.so")))
a, b = mx.random.normal((301, 576), key=mx.random.key(0)), mx.random.normal((576, 500), key=mx.random.key(1))
def product():
    made = a @ b
    mx.eval(made)
    return made
products = [product()]
chosen = library.scipy_openblas_get_num_threads()
for threads in range(1, len(os.sched_getaffinity(0)) + 1):
    library.scipy_openblas_set_num_threads(threads)
    products.append(product())
largest = max(mx.abs(each - products[0]).max().item() for each in products)
print(chosen, largest < 1e-6 * 576 ** 0.5 * mx.abs(products[0]).max().item(), said, sep="; ")
"""
    assert run(code.format(given=1)) == "1; True; openblas with 1 thread"
    threads, same, said = run(code.format(given=0)).split("; ")
    assert 1 <= int(threads) <= len(os.sched_getaffinity(0))
    assert same == "True"
    assert said.startswith(f"openblas with {threads} thread")


@needs_openblas
def test_one_thread_until_a_block_ends() -> None:
    code = """
import ctypes
from builder.engine import blas
def threads():
    return ctypes.CDLL(
        str(blas._package("scipy_openblas32", "lib/libscipy_openblas.so"))
    ).scipy_openblas_get_num_threads()
with blas.mlx_on_one_thread(), blas.accelerated(2):
    before = threads()
    with blas.mlx_on_one_thread():
        inside = threads()
    print(before, inside, threads())
"""
    assert run(code) == "2 1 2"


@needs_openblas
def test_it_can_be_undone_and_interrupted() -> None:
    """Inside `plain`, and after `accelerated`, products are those of mlx to the last bit."""
    code = """
import mlx.core as mx
from builder.engine import blas
a, b = mx.random.normal((301, 576), key=mx.random.key(0)), mx.random.normal((576, 500), key=mx.random.key(1))
def product():
    return mx.array((a @ b).tolist())
before = product()
def same():
    return mx.array_equal(product(), before).item()
with blas.accelerated(1) as kind:
    first = same()
    with blas.plain():
        inside = same()
    again = same()
print(kind, first, inside, again, same())
"""
    assert run(code) == "openblas with 1 thread False True False True"
