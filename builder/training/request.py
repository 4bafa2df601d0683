"""What the process of a training run is told, and the errors that it may answer with."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from builder.errors import BuildError
from builder.spec.training import Packed, Schedule, Training


class TrainingInvalid(BuildError):
    """adapter.{adapter}.train: {what}."""

    exit_code = 2


class TrainingStopped(BuildError):
    """adapter:{adapter}: training stopped at step {step}: {what}."""

    exit_code = 2
    hint = "Nothing of this run became the adapter. A smaller learning_rate may help."


class TrainingFailed(BuildError):
    """adapter:{adapter}: {what}."""

    exit_code = 2
    hint = "The same command goes on from the last checkpoint."


@dataclass(frozen=True)
class Request:
    """One run. `base` is the folder of the base, `out` the folder for the results and the checkpoints.

    `resume`: the checkpoint to go on from, or None. `memory`: bytes that a build may use, or None. The files
    of the data lie in `training.data`.
    """

    adapter: str
    training: Training
    base: Path
    dequantize: bool
    trust_remote_code: bool
    out: Path
    resume: Path | None
    memory: int | None

    def to_text(self) -> str:
        return json.dumps(asdict(self), default=str)


def from_text(text: str) -> Request:
    """The request that `to_text` wrote."""
    data: dict[str, Any] = json.loads(text)
    training: dict[str, Any] = data.pop("training")
    schedule = training.pop("schedule")
    if schedule is not None:
        schedule = Schedule(**{**schedule, "arguments": tuple(schedule["arguments"])})
    on = training.pop("on")
    training["on"] = Packed(**on) if on else None
    made = Training(
        **{**training, "data": Path(training["data"]), "keys": tuple(training["keys"]), "schedule": schedule}
    )
    resume = data.pop("resume")
    data |= {name: Path(data[name]) for name in ("base", "out")}
    return Request(training=made, resume=Path(resume) if resume else None, **data)
