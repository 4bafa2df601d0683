"""Parses what a variant says of a GGUF, after `builder.spec.shape` has checked its types."""

from __future__ import annotations

from builder.console.words import listed, quoted
from builder.spec.destinations import EXACT, K_QUANTS
from builder.spec.learned import calibrated
from builder.spec.problems import Problems
from builder.spec.quantizers import GgufKind
from builder.spec.shape import Values


def gguf_kind(values: Values, problems: Problems) -> GgufKind | None:
    """What a variant says of a GGUF. None without it, or after a problem."""
    kind, of = values.given.get("gguf"), values.given.get("of")
    if kind is None:
        return None
    if kind == EXACT and not values.says("of"):
        what = 'gguf = "exact" needs of beside it, the variant whose weights it holds; add, for example, '
        problems.add(values.place.key("gguf"), f'{what}of = "5bit"')
        return None
    if kind != EXACT and values.says("of"):
        what = f"of is only for gguf = {quoted(EXACT)}: {kind} is made of the base and the adapter; remove it"
        problems.add(values.place.key("of"), what)
        return None
    weighed = calibrated(values, problems)
    if weighed and kind not in K_QUANTS:
        what = f"calibration is for K-quants, and {kind} is none of them ({listed(K_QUANTS)}); remove it"
        problems.add(values.place.key("calibration"), what)
        return None
    return GgufKind(kind, of, weighed)
