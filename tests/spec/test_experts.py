"""What a declaration may say of experts."""

from __future__ import annotations

from pathlib import Path

import pytest

from builder.errors import SpecError
from builder.spec.parse import parse_spec
from builder.spec.quantizers import Experts
from builder.spec.types import Variant

TEXT = 'calibration = "text.txt"\n'


def parsed(folder: Path, settings: str) -> Variant:
    file = folder / "artifacts.toml"
    model = 'base = "b"\nvariants = ["f16", "v"]\nsuites = ["s"]\nrequire."s.kl" = "<= 1"\n'
    suite = 'kind = "fidelity"\ndata = "text.txt"\n'
    head = '[base.b]\npath = "base"\n[variant.f16]\n[variant.v]\n'
    file.write_text(f"{head}{settings}\n[model.m]\n{model}[suite.s]\n{suite}")
    return parse_spec(file).variants["v"]


@pytest.mark.parametrize(
    ("settings", "experts", "rounds"),
    [
        ("experts = 0.75\n", Experts(0.75), False),
        ('experts = 0.5\ncriterion = "ean"\nbits = 5\n', Experts(0.5, "ean"), False),
        ('experts = 0.5\nbits = 5\nrounding = "calibrated"\n', Experts(0.5), True),
        ('experts = 0.5\nbits = 5\nrounding = "nearest"\n', Experts(0.5), False),
        ('experts = 0.5\ntarget = "4.7bpw"\n', Experts(0.5), False),
        ('experts = 0.5\nmode = "mxfp4"\n', Experts(0.5), False),
        ('target = "smallest"\nexperts = [0.75, 1, 0.75]\n', Experts(0.75, choices=(1.0, 0.75)), False),
        ("bits = 5\n", None, True),
    ],
)
def test_a_variant_with_a_share(tmp_path: Path, settings: str, experts: Experts | None, rounds: bool) -> None:
    variant = parsed(tmp_path, TEXT + settings)
    assert variant.experts == experts
    assert variant.rounds_for_text is rounds
    assert variant.calibration == tmp_path / "text.txt"


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ("experts = 0.75", "experts needs calibration beside it; add the text to measure them with"),
        (TEXT + "experts = 1.0", "experts = 1.0 is not a share between 0 and 1; write, for example"),
        (TEXT + "experts = 0", "experts = 0 is not a share between 0 and 1"),
        (TEXT + "experts = -0.5", "is not a share between 0 and 1"),
        (TEXT + "experts = nan", "is not a share between 0 and 1"),
        (
            TEXT + 'experts = "most"',
            "experts: expected a number such as experts = 0.75, or a list",
        ),
        (TEXT + "experts = []", "experts: expected a number such as"),
        (TEXT + "experts = [1.0, 0.5]", 'needs target = "smallest" beside it, which searches among them'),
        (TEXT + 'target = "smallest"\nexperts = [0.5, 1.5]', "1.5 is not a share above 0 and up to 1"),
        (TEXT + 'target = "smallest"\nexperts = [0.5]', "one share leaves nothing to search"),
        (TEXT + 'experts = 0.5\ncriterion = "random"', 'criterion = "random" is not possible'),
        (TEXT + 'bits = 4\ncriterion = "reap"', "criterion needs experts beside it"),
        (TEXT + 'experts = 0.5\nrounding = "calibrated"', "this variant rounds nothing; remove it"),
        (
            TEXT + 'experts = 0.5\nbits = 4\nmethod = "dwq"\nfrom = "f16"',
            "experts excludes method; remove one or the other",
        ),
    ],
)
def test_a_variant_that_cannot_be_meant(tmp_path: Path, settings: str, says: str) -> None:
    with pytest.raises(SpecError) as caught:
        parsed(tmp_path, settings)
    assert says in caught.value.message
