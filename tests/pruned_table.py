"""`python -m tests.pruned_table` writes the section about experts of docs/architectures.md."""

from __future__ import annotations

from collections.abc import Iterable

from tests.architecture_table import EXPERTS, TABLE
from tests.architectures import REGISTRY
from tests.pruned import Outcome, outcome

HEAD = f"""{EXPERTS}

Can experts be left out ([experts.md](experts.md))? This project builds the model with another number of
experts, and looks which shapes follow that number. So no architecture needs a rule of its own.

Each row is a tiny random checkpoint that loses one of its four experts in each layer. It is quantized to 4
bits, loaded by mlx_lm, and compared with the same done by hand. Every tensor must have the same bits. The
test is `tests/engine/test_pruned_architectures.py`. `python -m tests.pruned_table` writes this section.

| architecture | number of experts in config.json | tensors that lose a place | measured here | result |
|---|---|---|---|---|
"""


def row(found: Outcome) -> str:
    """One line of the table."""
    if found.refused:
        return f"| {found.name} | - | - | - | refused: {found.refused.rstrip('.')} |"
    return f"| {found.name} | `{found.setting}` | {found.places} | {_short(found.measured)} | identical |"


def _short(measured: str) -> str:
    if "Metal" in measured:
        return "no: it needs a Metal kernel"
    return "no: its layers change a cache" if "changes" in measured else measured


def section(results: Iterable[Outcome]) -> str:
    """Without architectures that have no experts."""
    return HEAD + "\n".join(row(each) for each in results if "it has none" not in each.refused) + "\n"


def main() -> None:
    mixtures = [each for each in REGISTRY if each.kind in ("moe", "hybrid") and not each.fails]
    text = TABLE.read_text().partition(EXPERTS)[0].rstrip("\n")
    TABLE.write_text(f"{text}\n\n{section(outcome(each) for each in mixtures)}")


if __name__ == "__main__":
    main()
