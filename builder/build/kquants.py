"""llama.cpp's quantizer for the K-quants of a pass, with the importance matrices that they need."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

from builder.build.conversion import Converter
from builder.build.importance import importance_of
from builder.console.events import Emit
from builder.gguf import imatrix
from builder.gguf.architecture import GgufRefused
from builder.gguf.kquants import by_llama
from builder.gguf.library import library_file
from builder.gguf.mixes import MIXES
from builder.gguf.quantizer import Quantizer
from builder.gguf.settings import Unwritable
from builder.plan.types import TargetPlan
from builder.project.project import Project
from builder.project.state import missing_actions
from builder.store import blobs
from builder.store.holdings import usable_record
from builder.store.layout import Store


def prepare_kquants(project: Project, plans: Sequence[TargetPlan], emit: Emit) -> None:
    """What K-quants of a pass need before it: llama.cpp, and importance matrices. Raises BuildError."""
    for plan in plans:
        if _is_mixture(plan) and missing_actions(project.store, plan):
            library_file()  # before minutes of work
            if plan.gguf is not None and plan.gguf.importance is not None:
                importance_of(project, plan, emit)


@contextmanager
def with_quantizer(
    store: Store, plans: Sequence[TargetPlan], converters: Mapping[str, Converter]
) -> Iterator[Mapping[str, Converter]]:
    """The converters of a pass. Those of K-quants ask one process of llama.cpp while the context is open.

    Raises LlamaMissing, GgufRefused.
    """
    mixtures = [plan for plan in plans if plan.name in converters and _is_mixture(plan)]
    if not mixtures:
        yield converters
        return
    with Quantizer() as quantizer:
        yield {**converters, **{p.name: _asking(store, p, converters[p.name], quantizer) for p in mixtures}}


def _asking(store: Store, plan: TargetPlan, made: Converter, quantizer: Quantizer) -> Converter:
    record = usable_record(store, plan.gguf.importance) if plan.gguf and plan.gguf.importance else None
    means = imatrix.read(blobs.checked(store, record.blob)) if record else {}
    try:
        return replace(made, quantize=by_llama(quantizer, made.tensors, means))
    except Unwritable as error:
        raise GgufRefused(target=plan.name, what=str(error)) from error


def _is_mixture(plan: TargetPlan) -> bool:
    kind = plan.target.variant.gguf
    return kind is not None and kind.type in MIXES
