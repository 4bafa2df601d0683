"""The share of experts that a search has chosen, of `experts = [1.0, 0.875, 0.75]`. Pure.

Each share has a search of its size. The share that passes with the fewest bytes is kept.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from builder.console.words import size_text

WAITS = "its share of experts is not searched yet"


@dataclass(frozen=True)
class TriedShare:
    """A share whose size was searched: bits per weight and bytes of what passes. Else `said` says why not."""

    share: float
    bits_per_weight: float
    nbytes: int
    said: str = ""


@dataclass(frozen=True)
class Share:
    """The share that was chosen, and what was tried, in its order."""

    share: float
    tried: tuple[TriedShare, ...]

    def to_text(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self), sort_keys=True)


def from_text(text: str) -> Share:
    """What `to_text` wrote. Raises ValueError, TypeError, KeyError."""
    data = json.loads(text)
    return Share(data["share"], tuple(TriedShare(**each) for each in data["tried"]))


def explained(found: Share) -> tuple[str, ...]:
    """What came of each share, one line each."""
    lines = []
    for each in found.tried:
        what = f"{size_text(each.nbytes)} pass, with {each.bits_per_weight:.4g} bits per weight"
        kept = ": chosen" if each.share == found.share else ""
        lines.append(f"with {in_words(each.share)} {each.said or what}{kept}")
    return tuple(lines)


def in_words(share: float) -> str:
    """A share as a sentence names it: "all experts", "0.75 of the experts"."""
    return "all experts" if share == 1 else f"{share:g} of the experts"
