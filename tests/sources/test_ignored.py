"""What no model reads of config.json: every architecture of the installed mlx-lm is looked through."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import mlx_lm
import pytest

from builder.sources.base import IGNORED
from tests.conftest import ROOT

LIBRARY = Path(next(iter(mlx_lm.__path__)))
MODELS = sorted((LIBRARY / "models").rglob("*.py"))
# What makes weights, besides the models: loading, learned quantizers, LoRA layers, and our own engine.
MAKERS = [*sorted((LIBRARY / "quant").glob("*.py")), *sorted((ROOT / "builder/engine").rglob("*.py"))]
# mlx_lm.utils takes eos_token_id of config.json for the tokenizer, and merges generation_config.json into it.
# That is in config.json of every target, so it is in the key of config.json. No weight depends on it.
FOR_THE_TOKENIZER = {"eos_token_id"}
# Arguments of functions of their own, which no caller fills from config.json.
OWN = {
    ("muse_spark.py", "temperature"),
    ("dwq.py", "temperature"),
    ("tuning.py", "temperature"),
    ("text.py", "return_dict"),  # of apply_chat_template
    ("text.py", "eos_token_id"),  # of the tokenizer, whose files are in the key of a rounded block
}


def names(code: str) -> Iterator[str]:
    """Every name under which code can read a setting: fields, arguments, attributes, texts."""
    for node in ast.walk(ast.parse(code)):
        match node:
            case ast.AnnAssign(target=ast.Name(id=name)) | ast.Attribute(attr=name) | ast.arg(arg=name):
                yield name
            case ast.keyword(arg=str(name)) | ast.Constant(value=str(name)):
                yield name


@pytest.mark.parametrize(
    "code",
    [
        "@dataclass\nclass ModelArgs:\n    use_cache: bool = True",
        "def f(self, args):\n    return args.use_cache",
        "def f(config):\n    return config['use_cache']",
        "def f(config):\n    return config.get('use_cache', True)",
        "def f(config):\n    return getattr(config, 'use_cache')",
        "def __init__(self, use_cache):\n    pass",
        "make(use_cache=True)",
    ],
)
def test_each_way_to_read_a_setting_is_seen(code: str) -> None:
    assert "use_cache" in set(names(code))


@pytest.mark.parametrize("file", [*MODELS, *MAKERS], ids=lambda file: file.name)
def test_no_model_reads_what_is_ignored(file: Path) -> None:
    read = {name for name in names(file.read_text()) if name in IGNORED and (file.name, name) not in OWN}
    assert read == set()


def test_the_models_were_found() -> None:
    """And they read other settings."""
    assert len(MODELS) > 100
    read = {name for file in MODELS for name in names(file.read_text())}
    assert {"rope_theta", "tie_word_embeddings", "num_experts_per_tok", "sliding_window"} <= read
    assert not {"rope_theta", "tie_word_embeddings", "dtype", "torch_dtype", "quantization"} & IGNORED


def test_what_loads_a_model_reads_nothing_of_it_but_for_the_tokenizer() -> None:
    code = (LIBRARY / "utils.py").read_text()
    assert {name for name in names(code) if name in IGNORED} == FOR_THE_TOKENIZER
    functions = [node for node in ast.parse(code).body if isinstance(node, ast.FunctionDef)]
    reading = {each.name for each in functions if FOR_THE_TOKENIZER & set(names(ast.unparse(each)))}
    ours = {
        alias.name
        for file in (ROOT / "builder").rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module == "mlx_lm.utils"
        for alias in node.names
    }
    assert {"load_model", "load_config"} <= ours
    assert reading & ours <= {"load_config", "load"}  # `load` hands it to load_tokenizer
