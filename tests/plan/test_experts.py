"""How many experts stay, and which shares a router cannot work with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from builder.keys import Key
from builder.plan.experts import a_tenth_less, explained, kept_of
from builder.plan.quantization import PlanError
from builder.sources.facts import BaseFacts
from builder.spec.quantizers import Calibrated, Experts
from builder.spec.types import Model, Target, Variant
from builder.weights.experts import Experts as Seen
from builder.weights.experts import Routing
from tests.plan.test_key_parts import IDENTITY, TOY


def routing(count: int = 128, top_k: int = 8, groups: int = 1, opened: int = 1) -> Routing:
    seen = Seen(tuple(range(count)), tuple(map(float, range(count))), tuple(map(float, range(count))))
    return Routing(("n",), count, top_k, groups, opened, {}, {"layers.0": seen}, 8192, 0.5, 100)


def target(share: float, criterion: str = "reap") -> Target:
    variant = Variant(
        "small", experts=Experts(share, criterion), calibrated=Calibrated(Path("text.txt"), nearest=True)
    )
    return Target(Model("m", "base", None, ("small",)), variant)


@pytest.mark.parametrize(
    ("share", "found", "keep"),
    [
        (0.75, routing(), 96),
        (0.8, routing(), 102),
        (0.0625, routing(), 8),
        (0.5, routing(256, 8, groups=8, opened=4), 128),
    ],
)
def test_a_share_of_the_experts(share: float, found: Routing, keep: int) -> None:
    assert kept_of(target(share), found) == keep


@pytest.mark.parametrize(
    ("share", "found", "says", "hint"),
    [
        (
            0.05,
            routing(),
            "keeps 6 of 128 experts in each layer, but the router needs 8",
            "0.0625 (8 of 128)",
        ),
        (0.999, routing(), "keeps 128 of 128 experts in each layer: nothing is left out", "0.992188"),
        (
            0.76,
            routing(256, 8, 8, 4),
            "the router has 8 groups of experts",
            "Keep 0.75 (192 of 256) or 0.78125",
        ),
        (0.05, routing(256, 8, 8, 4), "but the router needs 16: a token goes to 8", "0.0625 (16 of 256)"),
    ],
)
def test_a_share_that_the_router_cannot_work_with(share: float, found: Routing, says: str, hint: str) -> None:
    with pytest.raises(PlanError) as caught:
        kept_of(target(share), found)
    assert says in caught.value.message
    assert hint in caught.value.report


@pytest.mark.parametrize(
    ("found", "keep"),
    [
        (routing(), 116),
        (routing(8, 8), None),  # a token goes to all experts
        (routing(64, 8, groups=8, opened=4), 56),
        (routing(64, 8, groups=8, opened=1), None),  # a token goes to all experts of one group
        (routing(16, 1, groups=8, opened=1), None),  # the router looks at two of each group
    ],
)
def test_a_tenth_is_left_out_where_the_router_can_work_without_it(found: Routing, keep: int | None) -> None:
    """It needs as many experts as for a share that somebody asks for."""
    less = a_tenth_less(BaseFacts(IDENTITY, TOY), found, Key("k"))
    assert (less.pruned.keep if less and less.pruned else None) == keep
    most = found.count - found.groups  # what a share may keep at most
    if keep is None:
        with pytest.raises(PlanError, match="but the router needs"):
            kept_of(target(most / found.count), found)
    else:
        assert kept_of(target(keep / found.count), found) == keep


def test_why_says_how_experts_were_chosen() -> None:
    lines = explained(target(0.75), routing())
    assert lines[0] == "keeps 96 of 128 experts in each layer by REAP over 8192 tokens"
    assert "at most 6.1%, in layers.0" in lines[1]
    assert lines[2] == "1 of 128 experts were never chosen on this text"
    assert lines[3] == "without a tenth of the experts, KL on 100 other tokens is 0.5"
    assert len(explained(target(0.5, "ean"), replace(routing(), tenth=None))) == 2
