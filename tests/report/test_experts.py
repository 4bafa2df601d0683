"""What a report says of variants with fewer experts."""

from __future__ import annotations

import dataclasses

from builder.report.experts import REDUNDANT, sentences
from builder.report.facts import ExpertsLeft
from builder.report.notes import first
from tests.report.test_page import report


def said(tenth: float | None) -> list[str]:
    left = {"small": ExpertsLeft(6, 8, "reap", tenth, 404), "half": ExpertsLeft(4, 8, "ean", tenth, 404)}
    return sentences(dataclasses.replace(report({}, {}), experts=left))


def test_how_many_experts_each_variant_keeps() -> None:
    assert sentences(report({}, {})) == []
    assert said(None) == ["Experts kept in each layer: small 6 of 8 (reap) and half 4 of 8 (ean)."]
    model = dataclasses.replace(report({}, {}), experts={"small": ExpertsLeft(6, 8, "reap", None, 0)})
    assert "Experts kept in each layer: small 6 of 8 (reap)." in first(model)


def test_a_warning_where_experts_are_not_redundant() -> None:
    assert said(REDUNDANT / 2)[1:] == [
        "Without a tenth of the experts, KL is 0.0025 on 404 other tokens.",
    ]
    assert said(10 * REDUNDANT)[1:] == [
        "The experts are not redundant: without a tenth of the experts, KL is 0.05 on 404 other tokens."
        " Expect more loss from each further tenth.",
    ]
