"""Scores a GGUF with llama.cpp: the library of the package xllamacpp, through its C interface.

That interface changes between releases. So this runs in the worker only, with the one version that is tested,
and looks first whether the library's defaults stand where they are expected.
"""

from __future__ import annotations

import ctypes
import os
import resource
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from builder.errors import BuildError
from builder.evaluate.process import Step
from builder.evaluate.worker.questions import Ask
from builder.gguf.library import TESTED, LlamaMissing, library
from builder.spec.rows import shared

_DEFAULTS = (512, 2048, 512, 1)  # of a context: n_ctx, n_batch, n_ubatch, n_seq_max
_MOST = 8192  # tokens of the longest text
_CHECKED = 50  # texts whose tokens are compared


class LlamaFailed(BuildError):
    """llama.cpp: {path}: {what}."""

    exit_code = 2


class _Params(ctypes.Structure):
    """Parameters, larger than those of any release: what is known of them stands at the beginning."""

    _fields_ = (("words", ctypes.c_uint32 * 256),)


class _Batch(ctypes.Structure):
    _fields_ = (
        ("count", ctypes.c_int32),
        ("tokens", ctypes.c_void_p),
        ("embeddings", ctypes.c_void_p),
        ("positions", ctypes.c_void_p),
        ("sequences", ctypes.c_void_p),
        ("ids", ctypes.c_void_p),
        ("wanted", ctypes.c_void_p),
    )


_LOG = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
_said: list[str] = []


def _log(level: int, text: bytes, _: object) -> None:
    if level >= 4:  # an error. The first explains best what a call answers
        _said.append(text.decode(errors="replace").strip())


_LOGGER = _LOG(_log)  # kept here, because the library calls it later


class LlamaCpp:
    """A GGUF that is loaded. It must be closed. Raises LlamaMissing, LlamaFailed."""

    def __init__(self, file: Path, longest: int) -> None:
        self._file = file
        _said.clear()
        self._library = lib = _library()
        lib.llama_backend_init()
        self._model = lib.llama_model_load_from_file(os.fsencode(file), lib.llama_model_default_params())
        if not self._model:
            raise self._failed("cannot be loaded")
        self._vocabulary = lib.llama_model_get_vocab(self._model)
        self._size = lib.llama_vocab_n_tokens(self._vocabulary)
        params = lib.llama_context_default_params()
        if tuple(params.words[:4]) != _DEFAULTS:
            found = f"its parameters begin with {list(params.words[:4])} instead of {list(_DEFAULTS)}"
            raise LlamaMissing(tested=TESTED, found=found)
        params.words[0] = params.words[1] = max(64, -(-longest // 64) * 64)
        self._context = lib.llama_init_from_model(self._model, params)
        if not self._context:
            raise self._failed("no context can be made")
        self._memory = lib.llama_get_memory(self._context)
        self._seen: tuple[int, ...] = ()

    def logits(self, ask: Ask) -> Any:
        """The logits at the positions of an ask, float32 [positions, vocabulary].

        What the ask before had computed is used again.
        """
        import numpy as np

        first = ask.start - 1  # the position whose logits score the first token
        kept = min(shared(self._seen, ask.tokens), first)
        if kept:
            self._library.llama_memory_seq_rm(self._memory, 0, kept, -1)
        else:
            self._library.llama_memory_clear(self._memory, True)
        tokens = ask.tokens[kept:-1]
        count = len(tokens)
        values = (ctypes.c_int32 * count)(*tokens)
        wanted = (ctypes.c_int8 * count)(*(int(kept + i >= first) for i in range(count)))
        batch = _Batch(
            count, ctypes.cast(values, ctypes.c_void_p), wanted=ctypes.cast(wanted, ctypes.c_void_p)
        )
        if self._library.llama_decode(self._context, batch) != 0:
            self._seen = ()
            raise self._failed("does not compute")
        self._seen = ask.tokens[:-1]
        out = np.empty((count + kept - first, self._size), np.float32)
        for row in range(len(out)):
            pointer = self._library.llama_get_logits_ith(self._context, first - kept + row)
            out[row] = np.ctypeslib.as_array(pointer, (self._size,))
        return out

    def forget(self) -> None:
        """Nothing that was computed is used again."""
        self._seen = ()

    def likeliest(self, tokens: tuple[int, ...]) -> int:
        """The likeliest token after these."""
        return int(self.logits(Ask((*tokens, 0), len(tokens)))[0].argmax())

    def tokens(self, text: str) -> list[int]:
        """How llama.cpp cuts a text, with the names of special tokens read as these tokens."""
        data = text.encode()
        room = len(data) + 16
        found = (ctypes.c_int32 * room)()
        count = self._library.llama_tokenize(self._vocabulary, data, len(data), found, room, False, True)
        if count < 0:
            raise self._failed("cannot cut a text into tokens")
        return list(found[:count])

    def check_tokens(self, asks: Sequence[Ask], tokenizer: Any) -> None:
        """Raises LlamaFailed when llama.cpp cuts a prompt into other tokens than the model's tokenizer."""
        prompts = dict.fromkeys(ask.tokens[: ask.start] for ask in asks)
        for prompt in list(prompts)[:_CHECKED]:
            text = tokenizer.decode(list(prompt))
            if self.tokens(text) != list(tokenizer.encode(text, add_special_tokens=False)):
                raise LlamaFailed(
                    path=self._file.name, what=f"cuts {text[:60]!r} into other tokens than the model"
                )

    def close(self) -> None:
        self._library.llama_free(self._context)
        self._library.llama_model_free(self._model)

    def _failed(self, what: str) -> LlamaFailed:
        why = f" ({_said[0]})" if _said else ""
        return LlamaFailed(path=self._file.name, what=f"{what}{why}")


class LlamaWriter:
    """A GGUF that writes, until a token that ends an answer. Its memory is that of the process.

    Each prompt is read from its beginning, as mlx-lm does it.
    """

    def __init__(self, model: LlamaCpp, tokenizer: Any) -> None:
        self._model, self._tokenizer = model, tokenizer

    def write(self, tokens: Sequence[int], limit: int) -> tuple[str, float]:
        """The likeliest text after these tokens, of at most `limit` tokens, and the tokens per second."""
        self._model.forget()
        written, started = list(tokens), 0.0
        for made in range(limit):
            token = self._model.likeliest(tuple(written))
            if not made:
                started = time.perf_counter()  # the prompt is read
            if token in self._tokenizer.eos_token_ids:
                break
            written.append(token)
        answer = written[len(tokens) :]
        taken = time.perf_counter() - started
        return self._text(answer), max(len(answer) - 1, 0) / taken if taken else 0.0

    def _text(self, tokens: Sequence[int]) -> str:
        """As mlx-lm makes text of what it writes."""
        made = self._tokenizer.detokenizer
        made.reset()
        for token in tokens:
            made.add_token(token)
        made.finalize()
        return str(made.text)

    def memory(self) -> float:
        """What it took at its peak, in GB."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak * (1 if sys.platform == "darwin" else 1024) / 1e9


def score(
    model: LlamaCpp, asks: Sequence[Ask], reduce: Callable[[int, Any], None], size: int, step: Step
) -> None:
    """Calls reduce(i, log-probs) for every ask i, asks that begin alike one after another."""
    import mlx.core as mx

    order = sorted(range(len(asks)), key=lambda index: asks[index].tokens)
    for done, index in enumerate(order, start=1):
        out = mx.array(model.logits(asks[index]))
        reduce(index, out - mx.logsumexp(out, axis=-1, keepdims=True))
        step(done, len(asks))


def longest(asks: Sequence[Ask]) -> int:
    """Tokens of the longest ask. Raises LlamaFailed for more than a context has here."""
    found = max((len(ask.tokens) for ask in asks), default=1)
    if found > _MOST:
        raise LlamaFailed(path="a question", what=f"has {found} tokens, and at most {_MOST} are measured")
    return found


def _library() -> Any:
    """The library, with the types of the functions that are used. Raises LlamaMissing."""
    lib = library()
    lib.llama_log_set.argtypes = [_LOG, ctypes.c_void_p]
    lib.llama_log_set(_LOGGER, None)
    pointer, number = ctypes.c_void_p, ctypes.c_int32
    for name, result, arguments in (
        ("llama_model_default_params", _Params, []),
        ("llama_context_default_params", _Params, []),
        ("llama_model_load_from_file", pointer, [ctypes.c_char_p, _Params]),
        ("llama_model_get_vocab", pointer, [pointer]),
        ("llama_vocab_n_tokens", number, [pointer]),
        ("llama_init_from_model", pointer, [pointer, _Params]),
        ("llama_get_memory", pointer, [pointer]),
        ("llama_memory_clear", None, [pointer, ctypes.c_bool]),
        ("llama_memory_seq_rm", ctypes.c_bool, [pointer, number, number, number]),
        ("llama_decode", number, [pointer, _Batch]),
        ("llama_get_logits_ith", ctypes.POINTER(ctypes.c_float), [pointer, number]),
        ("llama_free", None, [pointer]),
        ("llama_model_free", None, [pointer]),
        (
            "llama_tokenize",
            number,
            [pointer, ctypes.c_char_p, number, pointer, number, ctypes.c_bool, ctypes.c_bool],
        ),
    ):
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    return lib
