"""PEFT adapters on an embedding that is also the output head: one change, or a refusal that names the tie."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import pytest

from builder.engine.inspect import inspect
from builder.errors import SourceInvalid
from builder.sources.adapters.places import check_fit, placed, places_of
from builder.sources.adapters.reading import read_adapter
from builder.sources.adapters.types import AdapterInfo
from builder.spec.types import Adapter
from builder.weights.structure import Structure
from tests.architectures import checkpoint, dense

AT = "base_model.model.model."
EMBEDDING, HEAD = f"{AT}embed_tokens", "base_model.model.lm_head"
WHOLE = mx.random.normal((128, 64), key=mx.random.key(0))
A = mx.random.normal((4, 128), key=mx.random.key(1))
B = mx.random.normal((64, 4), key=mx.random.key(2))
EMBEDDING_PAIR = {f"{EMBEDDING}.lora_embedding_A": A, f"{EMBEDDING}.lora_embedding_B": B}
# The same change as PEFT ties it: the head's A is the embedding's B, transposed.
HEAD_PAIR = {f"{HEAD}.lora_A.weight": mx.contiguous(B.T), f"{HEAD}.lora_B.weight": mx.contiguous(A.T)}
OTHER_PAIR = {f"{HEAD}.lora_A.weight": mx.contiguous(B.T), f"{HEAD}.lora_B.weight": mx.contiguous(A.T) + 1}
QUERY = {
    f"{AT}layers.0.self_attn.q_proj.lora_{letter}.weight": mx.ones(shape)
    for letter, shape in (("A", (4, 64)), ("B", (64, 4)))
}
PAIR = {"model.embed_tokens.lora_a", "model.embed_tokens.lora_b"}


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Structure:
    return inspect(
        checkpoint(tmp_path_factory.mktemp("tied") / "base", dense("qwen3", tie_word_embeddings=True))
    )


def fitted(structure: Structure, folder: Path, tensors: dict[str, mx.array], **config: object) -> AdapterInfo:
    folder.mkdir()
    mx.save_safetensors(str(folder / "adapter_model.safetensors"), tensors)
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, **config}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    adapter, places = Adapter("a", "b", folder), places_of(structure)
    info = placed(read_adapter(adapter), adapter, places)
    check_fit(adapter, info, places)
    return info


@pytest.mark.parametrize(
    ("tensors", "config", "names"),
    [
        ({f"{EMBEDDING}.weight": WHOLE, f"{HEAD}.weight": WHOLE}, {}, {"model.embed_tokens.weight"}),
        ({f"{EMBEDDING}.weight": WHOLE}, {"ensure_weight_tying": True}, {"model.embed_tokens.weight"}),
        ({**EMBEDDING_PAIR, **HEAD_PAIR}, {}, PAIR),
        (EMBEDDING_PAIR, {"ensure_weight_tying": True}, PAIR),
    ],
    ids=["saved twice", "saved as one", "trained twice", "trained as one"],
)  # fmt: skip
def test_one_change(
    tied: Structure, tmp_path: Path, tensors: dict[str, mx.array], config: dict[str, object], names: set[str]
) -> None:
    info = fitted(tied, tmp_path / "peft", {**tensors, **QUERY}, **config)
    assert {tensor.name for tensor in info.tensors if "q_proj" not in tensor.name} == names


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({f"{EMBEDDING}.weight": WHOLE}, 'trains "model.embed_tokens" alone'),
        ({f"{HEAD}.weight": WHOLE}, 'trains "lm_head" alone'),
        (EMBEDDING_PAIR, 'trains "model.embed_tokens" alone'),
        (HEAD_PAIR, 'trains "lm_head" alone'),
        ({f"{EMBEDDING}.weight": WHOLE, f"{HEAD}.weight": WHOLE + 1}, "apart"),
        ({**EMBEDDING_PAIR, **OTHER_PAIR}, "apart"),
        ({f"{EMBEDDING}.weight": WHOLE, **HEAD_PAIR}, "apart"),
        ({f"{EMBEDDING}.weight": WHOLE, f"{HEAD}.weight": WHOLE.astype(mx.float16)}, "apart"),
    ],
)
def test_a_refusal_names_the_tie(
    tied: Structure, tmp_path: Path, tensors: dict[str, mx.array], says: str
) -> None:
    with pytest.raises(SourceInvalid) as caught:
        fitted(tied, tmp_path / "peft", {**tensors, **QUERY})
    assert says in str(caught.value)
    assert "tie_word_embeddings" in str(caught.value)


def test_a_base_with_a_head_of_its_own_takes_both(tmp_path: Path) -> None:
    structure = inspect(checkpoint(tmp_path / "base", dense("qwen3")))
    tensors = {f"{EMBEDDING}.weight": WHOLE, f"{HEAD}.weight": WHOLE + 1}
    info = fitted(structure, tmp_path / "peft", tensors)
    assert {tensor.name for tensor in info.tensors} == {"model.embed_tokens.weight", "lm_head.weight"}
