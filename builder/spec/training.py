"""How an adapter is trained, as frozen values. Names and defaults are those of mlx_lm.lora."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

TYPES = ("lora", "dora", "full")
KEEPS = ("best", "last")
OPTIMIZERS = ("adam", "adamw", "muon", "sgd", "adafactor")
# Schedule of mlx.optimizers -> how many arguments it takes, from and to.
SCHEDULES: Mapping[str, tuple[int, int]] = {
    "cosine_decay": (2, 3),
    "exponential_decay": (2, 2),
    "linear_schedule": (3, 3),
    "step_decay": (3, 3),
}
TRAIN, VALID = "train.jsonl", "valid.jsonl"
# What changes no byte of the adapter: where the data lie, and how often a run is saved.
_OUTSIDE = ("data", "save_every")
_OF_PAIRS = ("rank", "scale", "dropout", "keys")  # what a full fine-tune does not read


@dataclass(frozen=True)
class Schedule:
    """A learning rate that changes: `name` is a function of mlx.optimizers.schedulers."""

    name: str
    arguments: tuple[float, ...]
    warmup: int = 0
    warmup_init: float = 0.0

    def __str__(self) -> str:
        warm = f", warm-up of {self.warmup} steps from {self.warmup_init:g}" if self.warmup else ""
        return f"{self.name}({', '.join(f'{each:g}' for each in self.arguments)}){warm}"


@dataclass(frozen=True)
class Packed:
    """How the base is quantized that an adapter is trained on: the arguments of mx.quantize."""

    bits: int
    group_size: int
    mode: str

    def __str__(self) -> str:
        mode = "" if self.mode == "affine" else f" {self.mode}"
        return f"{self.bits}-bit{mode}, group size {self.group_size}"


@dataclass(frozen=True)
class Training:
    """How an adapter is trained. `data` is the folder of train.jsonl and valid.jsonl.

    `layers` -1: all layers. `keys` empty: every module that mlx-lm can adapt. `patience` None: no early stop.
    `on` None: trained on the base as it is.
    """

    data: Path
    type: str = "lora"
    rank: int = 8
    scale: float = 20.0
    dropout: float = 0.0
    keys: tuple[str, ...] = ()
    layers: int = 16
    iterations: int = 1000
    batch_size: int = 4
    grad_accumulation_steps: int = 1
    optimizer: str = "adam"
    learning_rate: float = 1e-5
    schedule: Schedule | None = None
    max_length: int = 2048
    mask_prompt: bool = False
    grad_checkpoint: bool = False
    seed: int = 0
    steps_per_eval: int = 200
    val_batches: int = 25
    save_every: int = 100
    keep: str = "best"
    patience: int | None = None
    on: Packed | None = None

    @property
    def checkpoints(self) -> range:
        """The steps after which a run is saved."""
        return range(self.save_every, self.iterations, self.save_every)

    @property
    def settings(self) -> Mapping[str, str | int | float | bool]:
        """Everything that can change the adapter, by name: for its key, for its manifest and for `why`."""
        found: dict[str, str | int | float | bool] = {}
        for each in fields(self):
            value = getattr(self, each.name)
            unread = self.type == "full" and each.name in _OF_PAIRS
            if each.name in _OUTSIDE or unread or value is None or value == ():
                continue
            if each.name == "learning_rate" and self.schedule is not None:
                continue
            found[each.name] = ", ".join(value) if isinstance(value, tuple) else _plain(value)
        return found


def _plain(value: object) -> str | int | float | bool:
    return value if isinstance(value, str | int | float | bool) else str(value)
