"""Runs one learned quantizer in a process of its own: `python -m builder.engine.quantizer REQUEST.json`.

This runs mlx-lm's own `main` of the method. The declared calibration text replaces the text that mlx-lm would
fetch from the network or read from the user's home.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from builder.console.orphans import end_with_parent
from builder.machine import memory


@dataclass(frozen=True)
class LearnedRequest:
    """What to quantize and how. Paths are text, so that the request can be written as JSON.

    `out` must not exist. `start` is a quantized model whose scales and biases are tuned, or None.
    `calibration` is a copy of the declared file. Messages call it `calibration_name`.
    `samples` counts pieces of `sequence_length` tokens. `target_bpw` is in bits per weight.
    """

    source: str
    out: str
    calibration: str
    calibration_name: str
    trust_remote_code: bool
    method: str
    bits: int
    group_size: int
    seed: int
    samples: int
    sequence_length: int
    learning_rate: float
    high_bits: int
    target_bpw: float
    start: str | None = None

    def to_text(self) -> str:
        """The request as JSON, which `main` reads."""
        return json.dumps(asdict(self))


def main() -> None:
    """Runs the request in the file that the command line names. Exits as mlx-lm's `main` does."""
    end_with_parent()
    request = LearnedRequest(**json.loads(Path(sys.argv[1]).read_text()))
    modules = {"dwq": "dwq", "awq": "awq", "gptq": "gptq", "dynamic": "dynamic_quant"}
    import importlib

    from builder.engine.blas import accelerate
    from builder.engine.progress import Told

    if request.start is not None:
        _tune(request, request.start)
        return
    accelerate()
    module: Any = importlib.import_module(f"mlx_lm.quant.{modules[request.method]}")
    module.load_data = _pairs(request) if request.method == "dwq" else _chunks(request)
    module.tqdm = Told
    if request.method != "dwq":  # dwq chooses its own types
        compute_in_float32(module)
    if request.method == "gptq":
        module.Catcher = _in_float32(module.Catcher)
    sys.argv = [request.method, *arguments(request)]
    module.main()


def _tune(request: LearnedRequest, start: str) -> None:
    """Tunes what is quantized already. Exits with a message for a text that cannot be used."""
    from builder.engine.blas import accelerate
    from builder.engine.tuning import Text, tune
    from builder.errors import BuildError

    accelerate(threads=1)  # the same bits from every run
    text = Text(Path(request.calibration), request.calibration_name, request.samples, request.sequence_length)
    source, out, trusted = Path(request.source), Path(request.out), request.trust_remote_code
    try:
        tune(source, Path(start), out, text, request.learning_rate, request.seed, trusted=trusted)
    except BuildError as error:
        sys.exit(error.message)


def compute_in_float32(module: Any) -> None:
    """On a CPU the method computes in float32, and its result has the types of its source.

    mlx multiplies float32 with BLAS on a CPU, and other types 20 times slower. A model that would fill more
    than half of the memory stays as it is.
    """

    import mlx.core as mx
    from mlx.utils import tree_flatten, tree_map_with_path

    load, save = module.load, module.save
    own: dict[str, Any] = {}

    def loaded(*arguments: Any, **options: Any) -> Any:
        made = load(*arguments, **options)
        parameters = dict(tree_flatten(made[0].parameters()))
        nbytes = 8 * sum(p.size for p in parameters.values())
        if mx.default_device() == mx.Device(mx.cpu) and nbytes < memory():
            own.update({name: value.dtype for name, value in parameters.items()})
            made[0].set_dtype(mx.float32)
        return made

    def saved(path: Any, source: Any, model: Any, *rest: Any, **options: Any) -> Any:
        def former(name: str, value: mx.array) -> mx.array:
            """The type of the parameter, or of the weight that scales and biases stand for."""
            dtype = own.get(name, own.get(f"{name.rpartition('.')[0]}.weight"))
            if dtype is None or not mx.issubdtype(value.dtype, mx.floating):
                return value
            return value.astype(dtype)

        model.update(tree_map_with_path(former, model.parameters()))
        return save(path, source, model, *rest, **options)

    module.load, module.save = loaded, saved


def _in_float32(catcher: Any) -> Any:
    """A `Catcher` of mlx_lm.quant.gptq that sums squared activations in float32.

    mlx-lm adds them in the model's own dtype. In float16 the sums over 65 000 tokens overflow to infinity,
    and the resulting weights are meaningless.
    """
    import mlx.core as mx

    class Catcher(catcher):  # type: ignore[misc]
        def __call__(self, x: Any, *args: Any, **kwargs: Any) -> Any:
            rows = x.flatten(0, -2).astype(mx.float32)
            self.H: Any = self.H + rows.T @ rows
            return self.module(x, *args, **kwargs)

    return Catcher


def arguments(request: LearnedRequest) -> list[str]:
    """The command line for the method's own `main`, without the program name."""
    common = {"model": request.source, "mlx-path": request.out, "seed": request.seed}
    own: dict[str, object] = {
        "bits": request.bits,
        "group-size": request.group_size,
        "num-samples": request.samples,
    }
    if request.method == "dwq":
        own |= {"max-seq-length": request.sequence_length, "learning-rate": request.learning_rate}
        own |= {"batch-size": 1}
    elif request.method == "dynamic":
        own = {
            "low-bits": request.bits,
            "low-group-size": request.group_size,
            "high-bits": request.high_bits,
            "high-group-size": request.group_size,
            "target-bpw": request.target_bpw,
        }
    else:
        own |= {"sequence-length": request.sequence_length}
        if request.method == "gptq":
            own |= {"fallback-bits": request.bits, "fallback-group-size": request.group_size}
        else:
            own |= {"embed-bits": request.bits, "embed-group-size": request.group_size}
    trust = ["--trust-remote-code"] if request.trust_remote_code else []
    return trust + [part for name, value in {**common, **own}.items() for part in (f"--{name}", str(value))]


def texts(path: Path, name: str) -> list[str]:
    """The pieces of a calibration file: lines of a .jsonl (`text`, or `messages` joined), else the whole.

    Exits with a message, which calls the file `name`, for a line that has neither.
    """
    is_rows = path.suffix == ".jsonl"
    try:
        whole = path.read_text(encoding="utf-8-sig" if is_rows else "utf-8")
    except UnicodeDecodeError as error:
        sys.exit(f"{name}: {error}")
    if not is_rows:
        return [whole]
    pieces = []
    for number, line in enumerate(whole.split("\n"), start=1):  # a JSON string may hold other line ends
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            text = row["text"] if "text" in row else "\n".join(m["content"] for m in row["messages"])
            text.encode()  # half a character is not a text
            pieces.append(text)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            sys.exit(f'{name}:{number}: neither {{"text": ...}} nor {{"messages": [...]}}')
    return pieces


def _tokens(request: LearnedRequest, tokenizer: Any) -> list[int]:
    pieces = texts(Path(request.calibration), request.calibration_name)
    tokens = [t for piece in pieces for t in tokenizer.encode(piece)]
    if len(tokens) < 2 * request.sequence_length:
        sys.exit(
            f"{request.calibration_name} holds {len(tokens)} tokens; at least {2 * request.sequence_length} "
            "are needed (two pieces of sequence_length)"
        )
    return tokens


def _chunks(request: LearnedRequest) -> Callable[..., Any]:
    """Replaces mlx_lm.quant.utils.load_data: gives tokens [samples, sequence_length] of the declared text."""

    def load_data(tokenizer: Any, num_samples: int, sequence_length: int) -> Any:
        import mlx.core as mx

        length = request.sequence_length
        tokens = _tokens(request, tokenizer)
        rows = mx.array(tokens[: len(tokens) // length * length]).reshape(-1, length)
        return rows[mx.random.permutation(rows.shape[0])[: request.samples]]

    return load_data


def _pairs(request: LearnedRequest) -> Callable[..., Any]:
    """Replaces mlx_lm.quant.dwq.load_data: gives pieces for training and validation, as (tokens, offset)."""

    def load_data(tokenizer: Any, *_: Any, **__: Any) -> Any:
        import numpy as np

        length = request.sequence_length
        tokens = _tokens(request, tokenizer)
        rows = [(tokens[at : at + length], 0) for at in range(0, len(tokens) - length + 1, length)]
        order = np.random.permutation(len(rows))
        held = max(1, min(32, len(rows) // 8))
        chosen = [rows[index] for index in order]
        return chosen[held : held + request.samples], chosen[:held]

    return load_data


if __name__ == "__main__":
    main()
