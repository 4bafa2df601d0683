"""Makes a GGUF of a built target. Of K-quants, llama.cpp makes it, with an importance matrix or without."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from builder.build.importance import importance_of, known_importance
from builder.console.events import Emit
from builder.gguf import imatrix
from builder.gguf.architecture import GgufRefused
from builder.gguf.kquants import by_llama
from builder.gguf.layout import shares
from builder.gguf.library import TESTED, library_file
from builder.gguf.mixes import MIXES, SMALLER
from builder.gguf.quantizer import Quantizer
from builder.gguf.settings import Unwritable
from builder.gguf.writing import WRITER, planned
from builder.keys import Key, make_key
from builder.plan.types import TargetPlan
from builder.project.project import Project
from builder.project.toolchain import version_of
from builder.publish.gguf.making import Gguf, from_record, known, make, written
from builder.spec.quantizers import Calibrated
from builder.store import blobs
from builder.store.holdings import usable_record
from builder.store.types import Record

_MIXTURES = 1  # of the rules which weight gets which type. Another number makes the files again


def gguf_of(
    project: Project,
    plan: TargetPlan,
    wanted: str,
    about: Mapping[str, str],
    how: Calibrated | None,
    emit: Emit,
    *,
    dry: bool,
) -> Gguf | None:
    """The file of a built target, made if the store has none. A `dry` run makes none. Raises BuildError.

    how: the text of the importance matrix that K-quants are made with.
    """
    if wanted not in MIXES:
        return known(project, plan, wanted, about) if dry else make(project, plan, wanted, about, emit)
    weighed = known_importance(project, plan, how, emit).key if how else None
    record = usable_record(project.store, _key(plan, wanted, about, weighed))
    if record is None and not dry:
        record = _made(project, plan, wanted, about, how, weighed, emit)
    return from_record(record, wanted) if record is not None else None


def outlook(project: Project, plan: TargetPlan, wanted: str, how: Calibrated | None) -> tuple[int, str, str]:
    """Of a file that is not made: the bytes of its weights, the type that most of them have, and its mix.

    Raises GgufRefused, GgufMissing.
    """
    made, _ = planned(project.store.models / plan.name, plan.name, wanted, weighed=how is not None)
    return made.nbytes, next(iter(made.mix)), mix_in_words(wanted, made.mix, made.bits_per_weight)


def mix_in_words(wanted: str, mix: Mapping[str, float], bits: float) -> str:
    """What a mixture really came out as. Empty for a type that says it itself."""
    if wanted not in MIXES:
        return ""
    said = f"{bits:.2f} bits per weight: {shares(mix)}"
    narrow = SMALLER.get(MIXES[wanted][0])
    if narrow in mix:
        said += f". {narrow} is for weights whose width is not a multiple of 256"
    return said


def _made(
    project: Project,
    plan: TargetPlan,
    wanted: str,
    about: Mapping[str, str],
    how: Calibrated | None,
    weighed: Key | None,
    emit: Emit,
) -> Record:
    library_file()  # before minutes of work: llama.cpp must be there
    what = planned(project.store.models / plan.name, plan.name, wanted, weighed=how is not None)
    tensors = what[0].tensors
    means: Mapping[str, Any] = {}
    said: dict[str, str] = {}
    if how is not None:
        names = {t.source.removesuffix(".weight"): t.name for t, w, _ in tensors if len(w.shape) > 1}
        found = importance_of(project, plan, how, names, emit)
        assert found.blob is not None
        means = imatrix.read(blobs.path(project.store, found.blob.digest))
        said = {"text": found.text, "importance": found.key}
    key = _key(plan, wanted, about, weighed)
    with Quantizer() as quantizer:
        try:
            quantize = by_llama(quantizer, tensors, means)
        except Unwritable as error:
            raise GgufRefused(target=plan.name, what=str(error)) from error
        return written(project, plan, wanted, about, key, what, quantize, said, emit)


def _key(plan: TargetPlan, wanted: str, about: Mapping[str, str], weighed: Key | None) -> Key:
    made_by = [version_of("gguf"), TESTED, _MIXTURES]
    return make_key(WRITER, plan.key, wanted, sorted(about.items()), made_by, weighed)
