"""Checks what a variant is made from: variants of the same model that have the weights it reads."""

from __future__ import annotations

from builder.console.words import quoted
from builder.spec.problems import Problems
from builder.spec.shape import Declared, Values

_QUANTIZED = ("bits", "mode", "recipe", "target")


def check_sources(variant: str, values: Values, declared: Declared, problems: Problems) -> None:
    """Checks what a variant of a model is made from. `values`: the table of the model."""
    own = declared["variant"].get(variant)
    if own is None:
        return
    for key in ("from", "start") if own.says("method") else ("of",) if own.says("gguf") else ():
        source = own.given.get(key)
        other = declared["variant"].get(source) if source else None
        if other is None:
            continue
        begins = "starts from" if key == "start" else "is made from"
        what = f"variant {quoted(variant)} {begins} {quoted(str(source))}"
        if wrong := _start_problem(other) if key == "start" else _problem(key, other):
            itself = source == variant
            is_what, right = ("which is this variant itself", "another one") if itself else wrong
            problems.add(values.place.key("variants"), f"{what}, {is_what}; name {right} in `{key}`")
        elif source not in values.given.get("variants", ()):
            problems.add(
                values.place.key("variants"), f"{what}, which this model does not list; add it to variants"
            )


def _problem(key: str, other: Values) -> tuple[str, str] | None:
    """What is wrong with the variant that another one is made from, and what to name instead."""
    wrong = (*_QUANTIZED, "method", "gguf") if key == "from" else ("method", "gguf")
    if not any(other.says(each) for each in wrong):
        return None
    is_what = "quantized" if key == "from" else "a GGUF" if other.says("gguf") else "made whole"
    right = "an unquantized variant" if key == "from" else "a variant that is made by block"
    return f"which is {is_what}", right


def _start_problem(other: Values) -> tuple[str, str] | None:
    """What is wrong with the variant whose scales and biases are tuned, and what to name instead."""
    right = "an affine variant, with `bits`, `recipe` or `target`,"
    if other.says("gguf") or other.says("method"):
        return f"which is {'a GGUF' if other.says('gguf') else 'made whole'}", right
    if not any(other.says(each) for each in _QUANTIZED):
        return "which is not quantized", right
    if other.says("mode") and other.get("mode") != "affine":
        return f"whose mode {quoted(other.get('mode'))} has no biases", right
    return ("which keeps fewer experts", "a variant with all experts") if other.says("experts") else None
