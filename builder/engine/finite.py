"""Whether weights hold NaN or infinity. Quantizing hides them, so they are looked for before."""

from __future__ import annotations

from collections.abc import Mapping

import mlx.core as mx

from builder.engine.arrays import is_finite
from builder.errors import BuildError


class NotFinite(BuildError):
    """{target}: tensor "{tensor}" holds NaN or infinity. Such values cannot be quantized."""

    exit_code = 2
    hint = "The checkpoint or the adapter is damaged, for example by a training run that diverged."


def check_finite(tensors: Mapping[str, mx.array], target: str) -> None:
    """Raises NotFinite for the first floating tensor that holds NaN or infinity."""
    floating = {n: a for n, a in sorted(tensors.items()) if mx.issubdtype(a.dtype, mx.floating)}
    if mx.default_device() == mx.Device(mx.cpu):  # where mx.isfinite is slow: it goes element by element
        flags = [is_finite(array) for array in floating.values()]
    else:
        lazy = [mx.isfinite(array).all() for array in floating.values()]
        mx.eval(lazy)
        flags = [bool(flag.item()) for flag in lazy]
    for name, flag in zip(floating, flags, strict=True):
        if not flag:
            raise NotFinite(target=target, tensor=name)
