"""Parses what a variant says of a GGUF, after `builder.spec.shape` has checked its types."""

from __future__ import annotations

from builder.console.words import listed, quoted
from builder.spec.destinations import EXACT, K_QUANTS
from builder.spec.learned import calibrated
from builder.spec.problems import Problems
from builder.spec.quantizers import GgufKind
from builder.spec.shape import Declared, Values


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


def check_source(variant: str, model: str, values: Values, declared: Declared, problems: Problems) -> None:
    """Checks that what a variant is made from is a variant of the same model that it can be made from."""
    own = declared["variant"].get(variant)
    key = "from" if own and own.says("method") else "of" if own and own.says("gguf") else None
    source = own.given.get(key) if own and key else None
    other = declared["variant"].get(source) if source else None
    if other is None:
        return
    wrong = ("bits", "mode", "recipe", "method", "gguf") if key == "from" else ("method", "gguf")
    if any(other.says(each) for each in wrong):
        is_what = "quantized" if key == "from" else "a GGUF" if other.says("gguf") else "made whole"
        right = "an unquantized variant" if key == "from" else "a variant that is made by block"
        what = f"variant {quoted(variant)} is made from {quoted(str(source))}, which is {is_what}"
        problems.add(values.place.key("variants"), f"{what}; name {right} in `{key}`")
    elif source not in values.given.get("variants", ()):
        what = f"variant {quoted(variant)} is made from {quoted(str(source))}, which this model does not list"
        problems.add(values.place.key("variants"), f"{what}; add it to variants")
