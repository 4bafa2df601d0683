"""mlx_lm without its tokenizers: a pass over weights does not import them, and they work when asked for."""

from __future__ import annotations

from pathlib import Path

from tests.conftest import fresh_python
from tests.tiny import make_base


def test_a_model_is_loaded_without_transformers(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    code = """
import sys
from pathlib import Path
from builder.engine.loading import load_base
model, config = load_base(Path(sys.argv[1]))
from builder.engine.lean import DEFERRED
print(len(DEFERRED), [name for name in DEFERRED if name in sys.modules])
"""
    assert fresh_python(code, str(base)).strip() == "5 []"


def test_what_was_put_off_works_in_the_same_process() -> None:
    code = """
from builder.engine.lean import import_mlx_lm
import_mlx_lm()
import sys
assert "transformers" not in sys.modules
import mlx_lm.generate, mlx_lm.utils
stand_in = mlx_lm.utils.TokenizerWrapper
import mlx_lm.tokenizer_utils, mlx_lm.tuner.trainer, transformers
assert mlx_lm.tuner.train.real is mlx_lm.tuner.trainer.train
real = mlx_lm.tokenizer_utils.TokenizerWrapper
print(real is not stand_in, isinstance(transformers.AutoTokenizer, type))
made = object.__new__(real)
print(isinstance(made, stand_in), isinstance(3, stand_in), issubclass(real, stand_in))
print(mlx_lm.utils._load_tokenizer.real is mlx_lm.tokenizer_utils.load)
try:
    mlx_lm.utils.load_tokenizer("/nowhere", eos_token_ids=None)
except Exception as error:
    print(type(error).__module__.split(".")[0])
"""
    first, second, third, fourth = fresh_python(code).splitlines()
    assert first == "True True"
    assert second == "True False True"
    assert third == "True"
    assert fourth in ("transformers", "huggingface_hub", "builtins")


def test_an_mlx_lm_that_needs_them_at_once_is_imported_as_usual(tmp_path: Path) -> None:
    """A module that derives a class from a stand-in while it is imported gets the real one in the end."""
    code = """
import sys
from builder.engine import lean
class Broken(lean._Forward):
    def __new__(cls, *arguments):
        raise TypeError("used while imported")
lean._Forward = Broken
lean.import_mlx_lm()
print("transformers" in sys.modules, sys.modules["mlx_lm.tokenizer_utils"].TokenizerWrapper.__name__)
"""
    assert fresh_python(code).strip() == "True TokenizerWrapper"
