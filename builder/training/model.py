"""The model that is trained, its optimizer, and how much memory a run takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from builder.engine.arrays import in_rows
from builder.engine.loading import load_base
from builder.spec.training import Packed, Training
from builder.training.request import Request, TrainingInvalid

_RESIDENT = 400 << 20  # bytes of the process itself


@dataclass(frozen=True)
class Student:
    """A model with the parameters to train unfrozen. `dtypes`: what they had in the base, by name."""

    model: nn.Module
    dtypes: Mapping[str, mx.Dtype]

    @property
    def trained(self) -> dict[str, mx.array]:
        """The parameters that are trained, by name."""
        return dict(tree_flatten(self.model.trainable_parameters()))

    @property
    def nbytes(self) -> int:
        """Bytes of all parameters, evaluated or not."""
        return sum(array.nbytes for _, array in tree_flatten(self.model.parameters()))

    def result(self, trained: Mapping[str, mx.array], training: Training) -> dict[str, mx.array]:
        """What is saved of trained parameters. A full fine-tune gets the types of the base again."""
        if training.type != "full":
            return dict(trained)
        return {name: array.astype(self.dtypes[name]) for name, array in trained.items()}


def student(request: Request, *, float32: bool) -> Student:
    """The base with what mlx_lm.lora adds to it. Raises BuildError.

    float32: compute in float32. The matrix products of mlx for CPUs are only fast in that type.
    """
    from mlx_lm.tuner.utils import linear_to_lora_layers

    training = request.training
    model, _ = load_base(
        request.base, dequantize=request.dequantize, trust_remote_code=request.trust_remote_code
    )
    dtypes = {name: array.dtype for name, array in tree_flatten(model.parameters())}
    if training.on is not None:
        _quantize(model, training.on)
    if float32:
        model.set_dtype(mx.float32)
    mx.random.seed(training.seed)
    model.freeze()
    layers: list[Any] = model.layers
    if training.layers > len(layers):
        what = f"layers = {training.layers}, but the base has {len(layers)} layers"
        raise TrainingInvalid(adapter=request.adapter, what=what, hint="layers = -1 trains all of them.")
    number = max(training.layers, 0)
    if training.type == "full":
        for layer in layers[-number:]:
            layer.unfreeze()
    else:
        try:
            linear_to_lora_layers(model, number, lora_parameters(training), training.type == "dora")
        except ValueError as error:  # DoRA on experts
            raise TrainingInvalid(adapter=request.adapter, what=str(error).rstrip(".")) from error
    if not tree_flatten(model.trainable_parameters()):
        raise TrainingInvalid(adapter=request.adapter, what="keys name no module that the base has")
    return Student(model, dtypes)


def _quantize(model: nn.Module, on: Packed) -> None:
    """Quantizes as a target of that variant is quantized, one module after the other. The base may be larger
    than memory."""
    predicate = getattr(model, "quant_predicate", None)

    def chosen(path: str, module: nn.Module) -> bool | dict[str, Any]:
        if not hasattr(module, "to_quantized"):
            return False
        weight = getattr(module, "weight", None)
        if weight is None or weight.shape[-1] % on.group_size != 0:
            return False
        module.weight = in_rows(weight)
        return predicate(path, module) if predicate else True

    nn.quantize(model, group_size=on.group_size, bits=on.bits, mode=on.mode, class_predicate=chosen)
    for _, module in model.named_modules():
        mx.eval([array for array in module.values() if isinstance(array, mx.array)])
        mx.clear_cache()


def lora_parameters(training: Training) -> dict[str, Any]:
    """The settings of the pairs, under mlx-lm's names."""
    made: dict[str, Any] = {"rank": training.rank, "dropout": training.dropout, "scale": training.scale}
    return {**made, "keys": list(training.keys)} if training.keys else made


def optimizer_of(training: Training) -> Any:
    """The optimizer with its learning rate, as mlx_lm.lora makes it."""
    import mlx.optimizers as optimizers
    from mlx_lm.tuner.utils import build_schedule

    kinds = {"adam": "Adam", "adamw": "AdamW", "muon": "Muon", "sgd": "SGD", "adafactor": "Adafactor"}
    rate: Any = training.learning_rate
    if (schedule := training.schedule) is not None:
        rate = build_schedule(
            {
                "name": schedule.name,
                "arguments": list(schedule.arguments),
                "warmup": schedule.warmup,
                "warmup_init": schedule.warmup_init,
            }
        )
    return getattr(optimizers, kinds[training.optimizer])(learning_rate=rate)


def memory_of(made: Student, training: Training, width: int) -> int:
    """About how many bytes a run takes at most. `width`: tokens of the longest row, padded.

    The weights, five copies of what is trained (with its gradient and two moments), and what each trained
    layer keeps for the gradient. The logits count four times.
    """
    weights = made.nbytes
    trained: int = 4 * sum(array.size for array in made.trained.values())
    arguments = getattr(made.model, "args", None)

    def said(name: str, default: int) -> int:
        value: int | None = getattr(arguments, name, None)
        return default if value is None else value

    hidden = said("hidden_size", 1024)
    inner, heads = said("intermediate_size", 4 * hidden), said("num_attention_heads", 16)
    each = hidden if training.grad_checkpoint else 14 * hidden + 6 * inner + 3 * heads * width
    layers = len(made.model.layers) if training.layers < 1 else training.layers
    tokens = training.batch_size * width
    activations = 4 * tokens * (layers * each + 4 * said("vocab_size", 32000))
    return _RESIDENT + weights + 5 * trained + activations
