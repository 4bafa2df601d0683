"""SentencePiece tokenizers: llama.cpp cuts every text as the model's own tokenizer does."""

from __future__ import annotations

import json
import random
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_unflatten

from builder.evaluate.worker.llama import LlamaCpp
from builder.gguf.settings import Unwritable
from builder.gguf.vocabulary import BYTE, CONTROL, UNKNOWN, UNUSED, USER_DEFINED, vocabulary
from tests.conftest import ROOT
from tests.publish.gguf.models import CONFIGS, make_model
from tests.publish.gguf.test_architectures import divergence, logprobs, of_llama, written

sentencepiece = pytest.importorskip("sentencepiece")
pytest.importorskip("gguf")
pytest.importorskip("xllamacpp")

ROWS = 1216  # of the embedding: a few more than there are tokens
TEMPLATES = {
    "llama": "{{ bos_token }}{% for m in messages %}[INST] {{ m['content'] }} [/INST]{% endfor %}",
    "gemma": "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ m['role'] }}\n{{ m['content'] }}"
    "<end_of_turn>\n{% endfor %}<start_of_turn>model\n",
}
_TRAINED: dict[str, dict[str, Any]] = {
    "llama": {"add_dummy_prefix": True, "unk_id": 0, "bos_id": 1, "eos_id": 2},
    "gemma": {
        **{"add_dummy_prefix": False, "pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3},
        **{"pad_piece": "<pad>", "bos_piece": "<bos>", "eos_piece": "<eos>"},
        "user_defined_symbols": ["\n\n", "\n\n\n", "<start_of_turn>", "<end_of_turn>"],
    },
}
_CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {
        "tokenizer_class": "LlamaTokenizer",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
    },
    "gemma": {"tokenizer_class": "GemmaTokenizer", "bos_token": "<bos>", "eos_token": "<eos>"},
}
_ODD = (
    "日本語のテキスト",
    "naïve café — “quoted”",
    "emoji 🙂👩‍👩‍👧 end",
    "tabs\tand\r\nlines\n\n\nmore",
    "    four spaces,  two",
    "12345 3.14 0x1F",
    "",
)


@cache
def trained(family: str, kind: str = "bpe") -> bytes:
    """A SentencePiece model that is trained on the documentation."""
    from io import BytesIO

    lines = [line for page in sorted((ROOT / "docs").glob("*.md")) for line in page.read_text().splitlines()]
    model = BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type=kind,
        vocab_size=1200,
        byte_fallback=True,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        character_coverage=0.999,
        minloglevel=2,
        **{"pad_id": -1, **_TRAINED[family]},
    )
    return model.getvalue()


def with_tokenizer(folder: Path, family: str, *, saved: bool, template: bool = True, **config: Any) -> Any:
    """A folder with such a tokenizer: as tokenizer.model, or `saved` as tokenizer.json; and the tokenizer."""
    from transformers import AutoTokenizer

    for old in ("tokenizer.json", "chat_template.jinja"):
        (folder / old).unlink(missing_ok=True)
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.model").write_bytes(trained(family))
    (folder / "tokenizer_config.json").write_text(json.dumps({**_CONFIGS[family], **config}))
    if template:
        (folder / "chat_template.jinja").write_text(TEMPLATES[family])
    if saved:
        AutoTokenizer.from_pretrained(folder).save_pretrained(folder)
        (folder / "tokenizer.model").unlink()
        assert (folder / "tokenizer.json").is_file()
    return AutoTokenizer.from_pretrained(folder)


def texts() -> list[str]:
    """Twenty prompts of the example, and texts that are hard to cut."""
    rows = (ROOT / "example/data/test.jsonl").read_text().splitlines()[:20]
    return [json.loads(row)["messages"][1]["content"] for row in rows] + [*_ODD, *map(chr, (233, 0x3042, 9))]


def model_of(folder: Path, family: str) -> Any:
    own = {"vocab_size": ROWS, "eos_token_id": 2 if family == "llama" else 1}
    own |= {"bos_token_id": 1 if family == "llama" else 2}
    return make_model(folder, {**CONFIGS["llama" if family == "llama" else "gemma2"], **own})


@pytest.mark.parametrize("saved", [False, True], ids=["tokenizer.model", "tokenizer.json"])
@pytest.mark.parametrize("family", ["llama", "gemma"])
def test_the_same_tokens_and_answers(tmp_path: Path, family: str, saved: bool) -> None:
    model, tensors = model_of(tmp_path / "m", family)
    tokenizer = with_tokenizer(tmp_path / "m", family, saved=saved)
    file = written(tmp_path / "m", "F16")
    found = LlamaCpp(file, 64)
    try:
        for text in texts():
            chat = tokenizer.apply_chat_template(
                [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
            )
            assert found.tokens(chat) == tokenizer.encode(chat, add_special_tokens=False), chat
    finally:
        found.close()
    model.update(tree_unflatten([(k, v.astype(mx.float32)) for k, v in tensors.items()]))
    for text in texts()[:20]:
        chat = tokenizer.apply_chat_template([{"role": "user", "content": text}], return_dict=False)
        tokens = tuple(chat)[:40]
        expected = logprobs(np.array(model(mx.array([tokens[:-1]]))[0]).astype(np.float64))
        assert divergence(expected, of_llama(file, tokens)) < 1e-3


def prepending(folder: Path) -> Any:
    """A tokenizer.json as of Llama 2, which transformers takes as it is, and the tokenizer."""
    from transformers import AutoTokenizer

    with_tokenizer(folder, "llama", saved=True, template=False)
    steps: list[Any] = [{"type": "Prepend", "prepend": "\u2581"}]
    steps += [{"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}]
    for name, change in (
        ("tokenizer.json", {"normalizer": {"type": "Sequence", "normalizers": steps}, "pre_tokenizer": None}),
        ("tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"}),
    ):
        said = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**said, **change}))
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("scheme", ["first", "always", "prepend"])
def test_texts_without_a_chat_get_a_space_where_the_tokenizer_gives_one(tmp_path: Path, scheme: str) -> None:
    model_of(tmp_path / "m", "llama")
    if scheme == "prepend":
        tokenizer = prepending(tmp_path / "m")
    else:
        legacy = scheme == "always"
        tokenizer = with_tokenizer(tmp_path / "m", "llama", saved=False, template=False, legacy=legacy)
        said = json.loads(tokenizer.backend_tokenizer.to_str())
        assert said["pre_tokenizer"]["prepend_scheme"] == scheme
    found = LlamaCpp(written(tmp_path / "m", "F16"), 64)
    try:
        rng = random.Random(7)
        letters = "".join(texts())
        many = ["".join(rng.choices(letters, k=30)).strip() for _ in range(100)]
        for text in [*texts(), *many]:
            if scheme == "prepend" or not text.startswith(
                " "
            ):  # transformers adds no second space, SentencePiece and llama.cpp do
                assert found.tokens(text) == tokenizer.encode(text, add_special_tokens=False), text
    finally:
        found.close()


def test_kinds_of_tokens(tmp_path: Path) -> None:
    with_tokenizer(tmp_path, "gemma", saved=False)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma2", "eos_token_id": [1, 7]}))
    made = vocabulary(tmp_path, ROWS)
    kinds = dict(zip(made.tokens, made.types, strict=True))
    assert made.kind == "llama"
    assert (kinds["<0x0A>"], kinds["<unk>"], kinds["<bos>"]) == (BYTE, UNKNOWN, CONTROL)
    assert (kinds["\n\n"], kinds["<start_of_turn>"], kinds["[PAD1215]"]) == (
        USER_DEFINED,
        USER_DEFINED,
        UNUSED,
    )
    assert made.ids == {"bos": 2, "eos": 1, "padding": 0, "unknown": 3, "eot": 7}
    assert not made.prefix
    assert not made.merges
    assert len(made.scores) == ROWS


def test_what_is_refused(tmp_path: Path) -> None:
    with_tokenizer(tmp_path, "llama", saved=True)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    said = json.loads((tmp_path / "tokenizer.json").read_text())
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config["tokenizer_class"] = "PreTrainedTokenizerFast"  # which takes tokenizer.json as it is
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    model = said["model"]
    lone = {key: value for key, value in model["vocab"].items() if key != "<0x00>"}
    for change, what in (
        ({"model": {**model, "merges": model["merges"][1:]}}, "its tokenizer never makes the token"),
        ({"model": {**model, "merges": []}}, "its tokenizer merges nothing"),
        ({"model": {**model, "vocab": lone}}, "has 255 tokens for them"),
        ({"normalizer": {"type": "Lowercase"}}, "prepares a text in a way that llama.cpp does not"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "prepares a text in a way that llama.cpp does not"),
        (
            {"model": {"type": "Unigram", "unk_id": 0, "vocab": [["a", -1.0]]}},
            "its tokenizer is of type Unigram",
        ),
    ):
        (tmp_path / "tokenizer.json").write_text(json.dumps({**said, **change}))
        with pytest.raises(Unwritable, match=what):
            vocabulary(tmp_path, ROWS)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(Unwritable, match="no tokenizer.json and no tokenizer.model"):
        vocabulary(tmp_path, ROWS)
    (tmp_path / "tokenizer.model").write_bytes(b"not a model")
    with pytest.raises(Unwritable, match="its tokenizer cannot be loaded"):
        vocabulary(tmp_path, ROWS)
