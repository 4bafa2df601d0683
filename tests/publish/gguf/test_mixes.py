"""The mixtures of K-quants: which weight gets which type, as llama.cpp's own quantizer gives them."""

from __future__ import annotations

import pytest

from builder.gguf.mixes import MIXES, Model, mixed
from builder.spec.destinations import K_QUANTS

_LAYER = {
    "attn_q": 576,
    "attn_k": 576,
    "attn_v": 576,
    "attn_output": 576,
    "ffn_gate": 576,
    "ffn_up": 576,
    "ffn_down": 1536,
}


def weights(layers: int, width: int | None = None) -> list[tuple[str, int]]:
    inner = [(f"blk.{at}.{n}.weight", width or c) for at in range(layers) for n, c in _LAYER.items()]
    return [("token_embd.weight", width or 576), *inner]


def test_the_spec_and_the_rules_name_the_same_types() -> None:
    assert tuple(MIXES) == K_QUANTS


def test_the_example_at_q4_k_m_is_mostly_something_else() -> None:
    """Its widths are 576 and 1536: `llama-quantize --dry-run` says the same of each of its 272 tensors."""
    made = mixed("Q4_K_M", weights(30), Model(30, 0, 3, False, True), weighed=False)
    assert made["token_embd.weight"] == "Q8_0"
    assert made["blk.0.attn_q.weight"] == "Q5_0"
    assert made["blk.0.attn_v.weight"] == "Q8_0"  # Q6_K, if its width allowed it
    assert made["blk.4.attn_v.weight"] == "Q5_0"
    assert made["blk.0.ffn_down.weight"] == "Q6_K"
    assert made["blk.4.ffn_down.weight"] == "Q4_K"


# Of "llama-quantize --dry-run", for a model of 17 layers whose widths are multiples of 256: the types of
# attn_v and ffn_down by layer, of attn_output, and of an embedding that is also the head.
_SEEN = {
    "Q6_K": ("6" * 17, "6" * 17, "6", "6"),
    "Q5_K_M": ("66556556556556666", "66556556556556666", "5", "6"),
    "Q5_K_S": ("5" * 17, "5" * 17, "5", "6"),
    "Q4_K_M": ("66446446446446666", "66446446446446666", "4", "6"),
    "Q4_K_S": ("55554444444444444", "55444444444444444", "4", "6"),
    "Q3_K_L": ("5" * 17, "5" * 17, "5", "6"),
    "Q3_K_M": ("55444444444444444", "54444444444444444", "4", "6"),
    "Q3_K_S": ("3" * 17, "3" * 17, "3", "6"),
    "Q2_K": ("4" * 17, "3" * 17, "3", "6"),
}


@pytest.mark.parametrize("wanted", _SEEN)
def test_layers(wanted: str) -> None:
    made = mixed(wanted, weights(17, 256), Model(17, 0, 4, False, True), weighed=False)
    values, downs = (
        "".join(made[f"blk.{at}.{name}.weight"][1] for at in range(17)) for name in ("attn_v", "ffn_down")
    )
    assert (values, downs, made["blk.9.attn_output.weight"][1], made["token_embd.weight"][1]) == _SEEN[wanted]


def test_what_else_decides() -> None:
    many, eight = Model(80, 0, 8, True, False), Model(16, 8, 4, False, False)
    assert mixed("Q4_K_S", weights(80, 256), many, weighed=False)["blk.40.attn_v.weight"] == "Q5_K"
    of_eight = mixed("Q4_K_M", weights(16, 256), eight, weighed=False)
    assert of_eight["blk.5.attn_v.weight"] == of_eight["blk.5.attn_k.weight"] == "Q8_0"
    assert of_eight["blk.5.attn_output.weight"] == "Q5_K"
    assert of_eight["token_embd.weight"] == "Q4_K"  # with a head of its own
    plain = Model(16, 0, 1, False, True)
    for weighed, first in ((False, "Q5_K"), (True, "IQ4_XS")):
        made = mixed("IQ4_XS", weights(16, 256), plain, weighed=weighed)
        assert made["blk.0.ffn_down.weight"] == first
        assert made["blk.0.attn_v.weight"] == "IQ4_XS"
    assert mixed("Q2_K", weights(2, 200), Model(2, 0, 1, False, True), weighed=False) == {
        name: "F16" for name, _ in weights(2, 200)
    }
