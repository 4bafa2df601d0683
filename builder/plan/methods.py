"""What each learned quantizer of mlx_lm.quant can do. Pure.

The plan refuses other requests before any work. mlx-lm itself refuses them after it has loaded the model and
read the text, or never: dwq at 8 bits trains nothing and says nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

from builder.plan.types import TargetPlan
from builder.spec.quantizers import TUNES, Learned
from builder.spec.types import Quantization
from builder.weights.structure import Structure

# From mlx_lm.quant.awq.AWQ_MODEL_CONFIGS. The other methods take any model with linear layers.
AWQ_TYPES = frozenset(
    {"llama", "mistral", "ministral3", "mistral3", "llava", "qwen2", "qwen3", "gemma3_text", "gemma3"}
    | {"deepseek_v2"}
)
# gptq.quantize packs 2, 4 and 8 bits only. dwq trains the scales of layers with fewer than 8 bits.
BITS: Mapping[str, frozenset[int]] = {
    "dwq": frozenset({2, 3, 4, 5, 6}),
    "awq": frozenset({2, 3, 4, 5, 6, 8}),
    "gptq": frozenset({2, 4, 8}),
    "dynamic": frozenset({2, 3, 4, 5, 6}),
}
# Only dwq uses mlx_lm.utils.quantize_model, which leaves weights alone whose width does not fit.
_ANY_WIDTH = frozenset({"dwq"})


def refusal(learned: Learned, how: Quantization, structure: Structure) -> tuple[str, str] | None:
    """Why a method cannot do what is asked, and what to do instead. None if the method can."""
    method, kind = learned.method, structure.model_type
    if method == "awq" and kind not in AWQ_TYPES:
        known = ", ".join(sorted(AWQ_TYPES))
        what = f'method "awq" does not support model type "{kind}" (it supports {known}).'
        return what, 'Use "dwq", "gptq" or "dynamic", or plain `bits`.'
    if how.bits not in BITS[method]:
        known = ", ".join(map(str, sorted(BITS[method])))
        what = f'method "{method}" cannot make {how.bits} bits (it makes {known}).'
        return what, "Set `bits` to one of these, or remove `method`."
    if method == "dynamic" and learned.high_bits <= how.bits:
        what = f'method "dynamic" needs high_bits above bits: {learned.high_bits} is not above {how.bits}.'
        return what, "Raise `high_bits`, or lower `bits`."
    if method not in _ANY_WIDTH:
        widths = {p.tensor.name: p.tensor.shape[-1] for p in structure.parameters if p.tensor.shape}
        for module in structure.quantizable:
            width = widths[f"{module.path}.weight"]
            if width % how.group_size:
                what = (
                    f'method "{method}" quantizes every weight, and groups of {how.group_size} do not divide'
                )
                return f'{what} the {width} columns of "{module.path}".', (
                    'Set a `group_size` that does, or use "dwq", which leaves such a weight as it is.'
                )
    return None


def start_refusal(start: TargetPlan) -> tuple[str, str] | None:
    """Why the scales and biases of a target cannot be tuned, and what to do instead. None if they can."""
    if any(how.mode == "affine" and how.bits in BITS[TUNES] for how in start.quantization.values()):
        return None
    what = f'method "{TUNES}" tunes affine weights of fewer than 8 bits, and {start.name} has none.'
    return what, "Name another variant in `start`."
