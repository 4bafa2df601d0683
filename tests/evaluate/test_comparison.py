"""Two targets on the same questions."""

from __future__ import annotations

import random

import pytest

from builder.evaluate.comparison import compare, together


def answers(right: int, wrong: int) -> list[float]:
    return [1.0] * right + [0.0] * wrong


def test_five_questions_show_nothing() -> None:
    """5 of 5 against 2 of 5 looks like much."""
    found = compare("choice", "greedy", answers(5, 0), answers(2, 3))
    assert found.value == pytest.approx(-0.6)
    assert found.p == pytest.approx(0.25)
    assert not found.differ
    assert str(found) == "no difference shown (5 questions)"


def test_a_few_questions_of_many_are_noise() -> None:
    """118 and 116 of 120, the failures of the better one among those of the other."""
    assert not compare("exact", "rate", answers(118, 2), answers(116, 4)).differ


def test_one_sided_failures_count() -> None:
    found = compare("generate", "rate", answers(118, 2), answers(107, 13))
    assert found.differ and found.p == pytest.approx(2 / 2**11)
    assert found.low is not None and found.high is not None
    assert found.low <= found.value <= found.high < 0
    assert str(found).startswith("-0.0917 (")


def test_the_pairing_decides() -> None:
    """The same two rates: one lot of failures inside the other, or apart from it."""
    first, inside, apart = answers(110, 10), answers(100, 20), [0.0] * 20 + [1.0] * 100
    assert compare("choice", "greedy", first, inside).differ
    assert not compare("choice", "greedy", first, apart).differ


def test_losses_are_compared_question_by_question() -> None:
    draw = random.Random(1)
    hard = [draw.uniform(0, 10) for _ in range(100)]  # questions differ far more than the targets do
    worse = [loss + 0.05 + draw.gauss(0, 0.05) for loss in hard]
    assert compare("perplexity", "perplexity", hard, worse).differ
    assert compare("perplexity", "perplexity", hard, worse) == compare(
        "perplexity", "perplexity", hard, worse
    )


def test_gains_that_equal_losses_are_no_difference() -> None:
    first = [1.0 + i % 7 for i in range(40)]
    second = [loss + (0.5 if i % 2 else -0.5) for i, loss in enumerate(first)]
    assert not compare("fidelity", "kl", first, second).differ


def test_nothing_to_compare() -> None:
    assert not compare("fidelity", "kl", [], []).differ
    assert not compare("fidelity", "kl", [1.0], [2.0]).differ
    with pytest.raises(ValueError, match="3 questions against 2"):
        compare("choice", "greedy", [1.0] * 3, [1.0] * 2)


def test_five_losses_show_nothing() -> None:
    """However alike the differences: five signs are alike once in sixteen times."""
    assert not compare("fidelity", "kl", [0.1] * 5, [0.2] * 5).differ
    assert compare("fidelity", "kl", [0.1] * 6, [0.2] * 6).differ


def test_many_tests_are_judged_together() -> None:
    """0.04 alone is a difference; among ten it is what chance does."""
    alone = compare("exact", "rate", answers(118, 2), answers(110, 10))
    assert alone.differ and alone.p == alone.adjusted < 0.01
    same = compare("exact", "rate", answers(118, 2), answers(118, 2))
    first, *others = together([alone, *[same] * 9])
    assert (first.p, first.adjusted) == (alone.p, pytest.approx(10 * alone.p))
    assert not first.differ
    assert not any(other.differ for other in others)
