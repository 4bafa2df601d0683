"""What a person sees at the end of a training run."""

from __future__ import annotations

from builder.training.curves import Curve, curve_from, curve_to_text, drawn, summary


def test_the_summary_says_what_was_kept() -> None:
    curve = Curve([(1, 4.0), (2, 1.0)], [(0, 4.0), (1, 2.0), (2, 3.0)], 1, 2)
    said = summary(curve, "best")
    assert said[-1] == "kept step 1 of 2, with the validation loss 2.000"
    assert said[0].endswith("4.000 -> 1.000")
    assert summary(curve, "last")[-1] == "kept the last step, 2"
    worse = Curve([(1, 4.0), (2, 5.0)], [(0, 1.0), (2, 5.0)], 2, 2)
    assert "no step is better than the base alone" in summary(worse, "best")[-1]
    assert summary(Curve([(1, 4.0)], [], None, 1), "last")[-1] == "kept the last step, 1"


def test_a_curve_is_drawn_over_all_steps() -> None:
    assert drawn([(1, 8.0), (2, 1.0)], 2, 4) == "████"[:2] + "▁▁"
    assert drawn([(5, 2.0)], 10, 3) == "▁▁▁"


def test_a_curve_comes_back_from_its_text() -> None:
    curve = Curve([(1, 0.1), (2, 1 / 3)], [(0, 2.5)], None, 2)
    assert curve_from(curve_to_text(curve)) == curve
