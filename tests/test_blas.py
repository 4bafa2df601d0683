"""OpenBLAS under mlx: used where it gives the same products, put back where it does not."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

from tests.conftest import ROOT

needs_openblas = pytest.mark.skipif(
    not sys.platform.startswith("linux") or importlib.util.find_spec("scipy_openblas32") is None,
    reason="scipy-openblas32 is not installed, or not for this system",
)


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@needs_openblas
def test_the_same_products() -> None:
    code = """
import mlx.core as mx
from builder.evaluate import blas
a, b = mx.random.normal((300, 700), key=mx.random.key(0)), mx.random.normal((700, 500), key=mx.random.key(1))
before = (a @ b).tolist()
kind = blas.accelerate()
print(kind, mx.allclose(a @ b, mx.array(before), rtol=1e-4, atol=1e-4).item())
"""
    assert run(code) == "openblas True"


@needs_openblas
def test_a_library_that_multiplies_wrongly_is_put_back() -> None:
    """A function of the same signature that writes nothing stands for another calling convention."""
    code = """
import ctypes
import mlx.core as mx
from builder.evaluate import blas
kind = ctypes.CFUNCTYPE(None)
nothing = kind(lambda: None)
blas._address = lambda library, name: ctypes.cast(nothing, ctypes.c_void_p).value
a, b = mx.random.normal((30, 70), key=mx.random.key(0)), mx.random.normal((70, 50), key=mx.random.key(1))
before = (a @ b).tolist()
print(blas.accelerate(), (a @ b).tolist() == before)
"""
    assert run(code) == "mlx True"
