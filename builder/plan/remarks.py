"""What has no effect in a declaration, for a person: said once for a model, not once for each variant."""

from __future__ import annotations

from collections.abc import Sequence

from builder.plan.types import TargetPlan


def remarked(plans: Sequence[TargetPlan]) -> list[str]:
    """Each remark once for a model, with the targets that it is about."""
    said: dict[tuple[str, str], list[str]] = {}
    for plan in plans:
        for remark in plan.remarks:
            text = remark.removeprefix(f"{plan.name}: ")
            said.setdefault((plan.target.model.name, text), []).append(plan.name)
    return [f"{', '.join(names)}: {text}" for (_, text), names in said.items()]
