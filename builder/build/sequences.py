"""The text that a target is made for, as tokens."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from builder.console.words import one_line
from builder.errors import EngineError, SourceChanged
from builder.plan.types import CONFIG, TargetPlan
from builder.project.project import Project
from builder.project.watch import base_folder, copied_from
from builder.store import blobs, tmp

if TYPE_CHECKING:
    from builder.engine.rounding.text import Piece


def open_sequences(project: Project, plan: TargetPlan) -> tuple[list[Piece], list[Piece]]:
    """The sequences of the calibration text that are rounded for, and others that nothing is rounded for.

    Raises SourceChanged, CalibrationInvalid.
    """
    from builder.engine.rounding.text import divided

    variant = plan.target.variant
    how = variant.text
    assert how is not None
    with tmp.new_folder(project.store) as scratch:
        copy = scratch / f"calibration{how.calibration.suffix}"
        shutil.copyfile(how.calibration, copy)
        if blobs.hash_file(copy).digest != plan.calibration:
            raise SourceChanged(source=f"variant.{variant.name}", path=how.calibration)
        tokenizer = _tokenizer(project, plan, scratch)
        name = f"variant.{variant.name}: {how.calibration.name}"
        return divided(copy, name, tokenizer, how.samples, how.sequence_length)


def _tokenizer(project: Project, plan: TargetPlan, scratch: Path) -> Any:
    """The tokenizer that the target will have, from copies of its files."""
    from mlx_lm.utils import load_tokenizer

    places = {**copied_from(project, plan), CONFIG: base_folder(project, plan) / CONFIG}
    for name, place in places.items():
        (scratch / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(place, scratch / name)
    trusted = project.spec.bases[plan.target.model.base].trust_remote_code
    try:
        return load_tokenizer(scratch, {"trust_remote_code": trusted})
    except Exception as error:  # it may be a program of the model's authors, which may raise anything
        raise EngineError(
            target=plan.name,
            what=f"its tokenizer cannot be loaded: {one_line(error)}",
            hint="Has it code of its own? Set `trust_remote_code = true` in the table of the base.",
        ) from error
