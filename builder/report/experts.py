"""What a report says of targets that leave experts out, and when it warns. Pure."""

from __future__ import annotations

from builder.console.words import listed
from builder.report.facts import ModelReport

REDUNDANT = 0.005  # nats for each token. Where a tenth of the experts costs more, they are not redundant


def sentences(model: ModelReport) -> list[str]:
    """How many experts are kept, and a warning where the experts of the model are not redundant."""
    left = model.experts
    if not left:
        return []
    kept = [f"{name} {each.kept} of {each.count} ({each.criterion})" for name, each in left.items()]
    said = [f"Experts kept in each layer: {listed(kept, 'and')}."]
    measured = {(each.tenth, each.held) for each in left.values() if each.tenth is not None}
    for tenth, held in sorted(measured):
        loss = f"without a tenth of the experts, KL is {tenth:.3g} on {held} other tokens"
        if tenth > REDUNDANT:
            said.append(f"The experts are not redundant: {loss}. Expect more loss from each further tenth.")
        else:
            said.append(f"{loss[0].upper()}{loss[1:]}.")
    return said
