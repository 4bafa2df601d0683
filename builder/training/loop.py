"""The training loop: mlx_lm.tuner.trainer.train, taken apart so that it can stop, go on and choose.

The loss, the layers, the order of batches and the compiled step are mlx-lm's. This loop adds checkpoints, the
best adapter, early stopping, and a stop at a loss that is not finite.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map

from builder.spec.training import Training
from builder.training import state
from builder.training.data import Row
from builder.training.model import Student, optimizer_of
from builder.training.order import Order, batches_of, padded
from builder.training.request import TrainingStopped
from builder.training.state import Arrays, Progress

_POINTS = 500  # of the curve of training losses


@dataclass(frozen=True)
class Heard:
    """Who is told what: each step (step, loss, tokens, seconds), each checkpoint (step, file), and each batch
    of a measurement (done, total).
    """

    step: Callable[[int, float, int, float], None]
    checkpoint: Callable[[int, Path], None]
    measured: Callable[[int, int], None]


class Run:
    """One training run: as far as it is, and how it goes on."""

    def __init__(
        self,
        adapter: str,
        made: Student,
        training: Training,
        train: Sequence[Row],
        valid: Sequence[Row],
        heard: Heard,
    ) -> None:
        self._heard = heard
        self._adapter, self._made, self._training = adapter, made, training
        self._train, self._valid = train, valid
        self._valid_batches = batches_of(valid, training.batch_size)
        self._order = Order(train, training.batch_size, training.seed)
        self._optimizer = optimizer_of(training)
        self._sum: Any = None
        self.progress = Progress()
        self.best: Mapping[str, mx.array] = {}

    def resume(self, file: Path) -> None:
        """Goes on from a checkpoint of a run with the same key."""
        self.progress, arrays, order = state.load(file)
        self._order.restore(order)
        self._made.model.load_weights(list(arrays.trained.items()), strict=False)
        self._optimizer.state = arrays.optimizer
        self._sum, self.best = arrays.sum, arrays.best

    def train(self, folder: Path) -> Mapping[str, mx.array]:
        """The adapter that is kept. Writes checkpoints into the folder. Raises TrainingStopped."""
        from mlx_lm.tuner.trainer import default_loss, grad_checkpoint

        training, progress, model = self._training, self.progress, self._made.model
        if training.grad_checkpoint:
            grad_checkpoint(model.layers[0])
        self._optimizer.init(model.trainable_parameters())
        step, held = _step(model, self._optimizer, default_loss, training.grad_accumulation_steps)
        model.train()
        while progress.step < training.iterations and not progress.stopped:
            started, number = time.perf_counter(), progress.step + 1
            chosen = self._order.take()
            batch = self._batch(self._train, chosen)
            if self._mlx_measures(number):
                order = self._order.draw(len(self._valid_batches))
                if progress.chosen is None:
                    most = training.val_batches
                    progress.chosen = order if most == -1 else order[:most]
            if number == 1:
                self._measure(default_loss)
            before = self._made.trained if training.type != "full" else None
            loss, tokens, self._sum = step(batch, self._sum, number % training.grad_accumulation_steps == 0)
            mx.eval(held, loss, tokens, self._sum)
            mx.clear_cache()
            if not math.isfinite(value := float(loss.item())):
                raise self._stopped(number, value, chosen, before, default_loss)
            progress.step = number
            self._note(value)
            self._heard.step(number, value, int(tokens.item()), time.perf_counter() - started)
            if number % training.steps_per_eval == 0 or number == training.iterations:
                self._measure(default_loss)
            if number % training.save_every == 0 and number < training.iterations:
                self._heard.checkpoint(number, self._save(folder))
        self._point()
        kept = self.best if training.keep == "best" and self.best else self._made.trained
        return self._made.result(kept, training)

    def _mlx_measures(self, number: int) -> bool:
        """Whether mlx_lm.lora draws an order of validation batches before this step."""
        at = number == 1 or number % self._training.steps_per_eval == 0 or number == self._training.iterations
        return at and bool(self._valid)

    def _batch(self, rows: Sequence[Row], chosen: Sequence[int]) -> tuple[mx.array, mx.array]:
        tokens, lengths = padded([rows[index] for index in chosen], self._training.max_length)
        return mx.array(tokens), mx.array(lengths)

    def _measure(self, loss: Callable[..., Any]) -> None:
        """The validation loss after the steps so far. Notes the best adapter, and when to stop."""
        progress, model = self.progress, self._made.model
        if not progress.chosen:
            return
        value = self._loss(model, loss)
        model.train()
        if not math.isfinite(value):
            what = f"the validation loss is {value}"
            raise TrainingStopped(adapter=self._adapter, step=progress.step, what=what)
        progress.valid.append((progress.step, value))
        if progress.step == 0:
            return
        if progress.best_loss is None or value < progress.best_loss:
            progress.best_loss, progress.best_step, progress.waited = value, progress.step, 0
            self.best = self._made.trained if self._training.keep == "best" else {}
        else:
            progress.waited += 1
            patience = self._training.patience
            progress.stopped = patience is not None and progress.waited >= patience

    def loss_on(self, other: Student, kept: Mapping[str, mx.array]) -> float:
        """The validation loss of an adapter on another model."""
        from mlx_lm.tuner.trainer import default_loss

        other.model.load_weights(list(kept.items()), strict=False)
        return self._loss(other.model, default_loss)

    def _loss(self, model: nn.Module, loss: Callable[..., Any]) -> float:
        model.eval()
        total, count = mx.array(0.0), mx.array(0)
        chosen = self.progress.chosen or []
        for done, index in enumerate(chosen, start=1):
            losses, tokens = loss(model, *self._batch(self._valid, self._valid_batches[index]))
            total, count = total + losses * tokens, count + tokens
            mx.eval(total, count)
            mx.clear_cache()
            self._heard.measured(done, len(chosen))
        found: Any = (total / count).item()
        return float(found)

    def _note(self, loss: float) -> None:
        """One more loss, as a part of a point of the curve."""
        self.progress.seen.append(loss)
        if self.progress.step % max(1, self._training.iterations // _POINTS) == 0:
            self._point()

    def _point(self) -> None:
        """The next point of the curve: the mean of the losses since the last one, if there are any."""
        seen = self.progress.seen
        if seen:
            self.progress.train.append((self.progress.step, sum(seen) / len(seen)))
            seen.clear()

    def _save(self, folder: Path) -> Path:
        file = folder / f"checkpoint-{self.progress.step}.safetensors"
        arrays = Arrays(self._made.trained, self._optimizer.state, self._sum, self.best)
        state.save(file, self.progress, arrays, self._order.state)
        return file

    def _stopped(
        self,
        step: int,
        value: float,
        chosen: Sequence[int],
        before: Mapping[str, mx.array] | None,
        loss: Callable[..., Any],
    ) -> TrainingStopped:
        """Which rows have a loss that is not finite, with the weights before the step."""
        lines = sorted(self._train[index].line for index in chosen)
        what = f"the loss of the rows in lines {', '.join(map(str, lines))} of train.jsonl is {value}"
        if before is not None:
            self._made.model.load_weights(list(before.items()), strict=False)
            self._made.model.eval()
            bad = [index for index in chosen if not self._is_finite(index, loss)]
            if bad and (len(bad) < len(chosen) or len(chosen) == 1):
                lines = sorted(self._train[index].line for index in bad)
                rows = "row in line" if len(lines) == 1 else "rows in lines"
                what = f"the loss of the {rows} {', '.join(map(str, lines))} of train.jsonl is {value}"
            elif bad:
                what = f"the loss of every row is {value} (lines {', '.join(map(str, lines))} of train.jsonl)"
        hint = None
        if not any(self._train[index].learned(self._training.max_length) for index in chosen):
            hint = "Nothing of these rows is left to learn: remove them, or make max_length larger."
        return TrainingStopped(adapter=self._adapter, step=step, what=what, hint=hint)

    def _is_finite(self, index: int, loss: Callable[..., Any]) -> bool:
        value, _ = loss(self._made.model, *self._batch(self._train, [index]))
        return math.isfinite(float(value.item()))


def _step(
    model: nn.Module, optimizer: Any, loss: Callable[..., Any], accumulated: int
) -> tuple[Callable[..., Any], list[Any]]:
    """mlx-lm's compiled step, and the arrays that it changes."""
    with_gradient = nn.value_and_grad(model, loss)
    held: list[Any] = [model.state, optimizer.state, mx.random.state]

    @partial(mx.compile, inputs=held, outputs=held)
    def step(batch: Any, former: Any, update: bool) -> Any:
        (value, tokens), gradient = with_gradient(model, *batch)
        if former is not None:
            gradient = tree_map(lambda x, y: x + y, gradient, former)
        if update:
            if accumulated > 1:
                gradient = tree_map(lambda x: x / accumulated, gradient)
            optimizer.update(model, gradient)
            gradient = None
        return value, tokens, gradient

    return step, held
