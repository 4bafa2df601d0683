"""What tuning came to. No mlx is loaded for it."""

from __future__ import annotations

from dataclasses import dataclass

OUTCOME = "outcome.json"  # beside the weights


@dataclass(frozen=True)
class Outcome:
    """KL to the unquantized model, in nats for each token, on `tokens` tokens that are not learned from."""

    before: float
    after: float
    tokens: int

    @property
    def better(self) -> bool:
        return self.after < self.before
