"""The process that trains: one JSON request on stdin, lines of JSON on stdout.

`builder.training.process` starts it as `python -m builder.training`. A process of its own gives the memory of
the model back when it ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TextIO

from builder.console.orphans import end_with_parent
from builder.console.words import size_text
from builder.errors import BuildError, described_error
from builder.machine import memory
from builder.spec.training import TRAIN, VALID
from builder.training.curves import ADAPTER, CONFIG, CURVE, Curve, curve_to_text
from builder.training.request import Request, TrainingInvalid, from_text


def main() -> int:
    """Returns 0, or the exit code of the error that the last line says."""
    end_with_parent()
    request, out = from_text(sys.stdin.read()), sys.stdout
    try:
        with contextlib.redirect_stdout(sys.stderr):  # libraries print
            _run(request, out)
    except BuildError as error:
        _say(out, error=described_error(error))
        return error.exit_code
    return 0


def _say(out: TextIO, **said: Any) -> None:
    out.write(json.dumps(said) + "\n")
    out.flush()


def _run(request: Request, out: TextIO) -> None:
    import mlx.core as mx

    from builder.engine.blas import accelerate
    from builder.engine.lean import import_mlx_lm
    from builder.training.data import remarks
    from builder.training.loop import Heard, Run
    from builder.training.model import memory_of, student
    from builder.training.order import padded

    on_cpu = mx.default_device() == mx.Device(mx.cpu)
    threads = os.environ.get("OPENBLAS_NUM_THREADS", "1")  # more of them may add in another order
    blas = accelerate(int(threads) if threads.isdigit() and int(threads) else 1) if on_cpu else "mlx"
    import_mlx_lm()
    training = request.training
    train, valid = _data(request, out)
    for name, rows in ((TRAIN, train), (VALID, valid)):
        for text in remarks(name, rows, training):
            _say(out, note=text)
    made = student(request, float32=on_cpu)
    wide = max((padded([row], training.max_length)[0].shape[1] for row in train), default=0)
    memory = memory_of(made, training, wide)
    trained = sum(array.size for array in made.trained.values())
    _say(out, note=f"{trained / 1e6:.2f} M parameters to train, about {size_text(memory)} of memory")
    if request.memory is not None and memory > request.memory:
        what = f"training takes about {size_text(memory)}, and [build] memory is {size_text(request.memory)}"
        hint = "Make batch_size or max_length smaller, or set grad_checkpoint = true."
        raise TrainingInvalid(adapter=request.adapter, what=what, hint=hint)
    heard = Heard(
        lambda step, loss, tokens, seconds: _say(out, step=step, loss=loss, tokens=tokens, seconds=seconds),
        lambda step, file: _say(out, checkpoint=step, file=file.name),
        lambda done, total: _say(out, part="validation", done=done, of=total),
    )
    run = Run(request.adapter, made, training, train, valid, heard)
    if request.resume is not None:
        run.resume(request.resume)
        _say(out, note=f"going on after step {run.progress.step} of {training.iterations}")
    kept = run.train(request.out)
    mx.save_safetensors(str(request.out / ADAPTER), dict(kept))
    fused = _fused_loss(request, run, kept, float32=on_cpu) if training.on else None
    config = json.dumps(_config(request), indent=4) + "\n"
    (request.out / CONFIG).write_text(config, encoding="utf-8")
    made_of = run.progress
    curve = Curve(made_of.train, made_of.valid, made_of.best_step, made_of.step)
    (request.out / CURVE).write_text(curve_to_text(curve), encoding="utf-8")
    peak = mx.get_peak_memory()
    _say(
        out,
        done=run.progress.step,
        blas=blas,
        precision="float32" if on_cpu else "as the base",
        peak=peak,
        fused=fused,
    )


def _fused_loss(request: Request, run: Any, kept: Mapping[str, Any], *, float32: bool) -> float | None:
    """The validation loss of the adapter on the base as it is. None where that needs too much memory."""
    from builder.training.model import student

    if not run.progress.chosen:
        return None
    plain = replace(request, training=replace(request.training, on=None))
    other = student(plain, float32=float32)
    if 2 * other.nbytes > memory():
        return None
    loss: float = run.loss_on(other, kept)
    return loss


def _data(request: Request, out: TextIO) -> tuple[Any, Any]:
    """The rows of train.jsonl and valid.jsonl. Raises TrainingInvalid."""
    from builder.engine.loading import load_config
    from builder.training.data import rows_of

    def tell(done: int, total: int) -> None:
        if done == total or done % 500 == 0:
            _say(out, part="reading rows", done=done, of=total)

    from mlx_lm.utils import load_tokenizer

    training, trusted = request.training, request.trust_remote_code
    ends = load_config(request.base).get("eos_token_id")
    tokenizer = load_tokenizer(request.base, {"trust_remote_code": trusted}, eos_token_ids=ends)
    train = rows_of(request.adapter, training.data / TRAIN, tokenizer, training, tell)
    file = training.data / VALID
    valid = rows_of(request.adapter, file, tokenizer, training, tell) if file.is_file() else ()
    for name, rows in ((TRAIN, train), (VALID, valid)):
        if rows and len(rows) < training.batch_size:
            what = f"batch_size = {training.batch_size}, but {name} has {len(rows)} rows"
            raise TrainingInvalid(adapter=request.adapter, what=what, hint="Make batch_size smaller.")
    if not any(row.learned(training.max_length) for row in train):
        raise TrainingInvalid(adapter=request.adapter, what=f"{TRAIN} has nothing to learn from")
    return train, valid


def _config(request: Request) -> Mapping[str, Any]:
    """adapter_config.json, as mlx_lm.tuner.utils.load_adapters reads it."""
    from builder.training.model import lora_parameters

    training = request.training
    pairs = None if training.type == "full" else lora_parameters(training)
    number = training.layers if training.layers > 0 else -1
    return {"fine_tune_type": training.type, "num_layers": number, "lora_parameters": pairs}


if __name__ == "__main__":
    sys.exit(main())
