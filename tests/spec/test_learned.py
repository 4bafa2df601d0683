"""The numbers of learned quantizers and of calibrated rounding are checked when the file is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from builder.spec.parse import parse_spec
from builder.spec.quantizers import Calibrated, Goal
from tests.spec.refused import problems

HEAD = """\
[base.b]
path = "base"
[variant.f16]
dtype = "float16"
[model.m]
base = "b"
variants = ["f16", "v"]
[variant.v]
from = "f16"
calibration = "text.txt"
"""


STARTED = """\
method = "dwq"
start = "s"
[variant.s]
"""


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ('method = "gptq"\nseed = -1', "seed = -1 is too small; it must be from 0 to 4.29497e+09"),
        ('method = "gptq"\nseed = 4294967296', "seed = 4294967296 is too large"),
        ('method = "gptq"\nsamples = 0', "samples = 0 is too small; it must be from 1 to 1e+06"),
        ('method = "awq"\nsequence_length = 1', "sequence_length = 1 is too small; it must be from 2"),
        ('method = "dwq"\nlearning_rate = nan', "learning_rate = nan is not a number that can be used"),
        ('method = "dwq"\nlearning_rate = inf', "learning_rate = inf is not a number that can be used"),
        ('method = "dwq"\nlearning_rate = 0.0', "learning_rate = 0.0 is too small"),
        ('method = "dwq"\nlearning_rate = 7', "learning_rate = 7 is too large; it must be from 1e-12 to 1"),
        ('method = "dynamic"\ntarget_bpw = nan', "target_bpw = nan is not a number that can be used"),
        ('method = "dynamic"\ntarget_bpw = 4.0', "4 bits in groups of 64 are 4.5 already"),
        ('method = "dynamic"\ntarget_bpw = 99', "target_bpw = 99 is too large"),
        (
            'method = "gptq"\nlearning_rate = 1e-6',
            'learning_rate is not for method "gptq" but for dwq; remove it',
        ),
        ('method = "dwq"\nhigh_bits = 8', 'high_bits is not for method "dwq" but for dynamic; remove it'),
        ('method = "awq"\ntarget_bpw = 5.0', 'target_bpw is not for method "awq" but for dynamic; remove it'),
    ],
)
def test_a_number_that_a_method_cannot_use(settings: str, says: str) -> None:
    assert says in problems(HEAD + settings)


@pytest.mark.parametrize(
    "settings",
    [
        'method = "gptq"\nseed = 0\nsamples = 1\nsequence_length = 2',
        'method = "dwq"\nlearning_rate = 1',
        'method = "dynamic"\ntarget_bpw = 4.5\nhigh_bits = 6',
        'method = "dynamic"\nbits = 5',  # the default of target_bpw is not said by the file
    ],
)
def test_a_number_that_a_method_can_use(settings: str) -> None:
    assert problems(HEAD + settings) == ""


# -- calibrated rounding -----------------------------------------------------------------------------------

CALIBRATED = HEAD.replace('from = "f16"\ncalibration = "text.txt"\n', "")


TEXT = 'calibration = "text.txt"\n'
BESIDE = "bits, recipe, target, method, experts or gguf"


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (TEXT, f"calibration needs {BESIDE} beside it; add"),
        (
            TEXT + 'dtype = "float16"',
            f"calibration needs {BESIDE} beside it; add",
        ),
        (TEXT + 'mode = "mxfp4"', f"calibration needs {BESIDE} beside it; add"),
        ("bits = 4\nsamples = 8", "samples needs calibration beside it; add"),
        ("bits = 4\nsequence_length = 8", "sequence_length needs calibration beside it; add"),
        (TEXT + "bits = 4\nsamples = 0", "samples = 0 is too small; it must be from 1 to 1e+06"),
        (TEXT + "bits = 4\nsamples = 1000001", "samples = 1000001 is too large; it must be from 1 to 1e+06"),
        (
            TEXT + "bits = 4\nsequence_length = 1",
            "sequence_length = 1 is too small; it must be from 2 to 1e+06",
        ),
        (TEXT + "bits = 4\nsamples = 2.5", "samples"),
        (TEXT + "bits = 4\nseed = 1", "seed needs method beside it; add"),
        (TEXT + 'bits = 4\nfrom = "f16"', "from needs method beside it; add"),
        (TEXT + "bits = 7", "bits = 7 is not possible"),
        ("bits = 4\ncalibration = 7", "calibration"),
    ],
)
def test_a_calibrated_variant_that_cannot_be_meant(settings: str, says: str) -> None:
    assert says in problems(CALIBRATED + settings)


@pytest.mark.parametrize(
    ("settings", "samples", "length"),
    [
        ("bits = 4", 32, 256),
        ("bits = 2\ngroup_size = 32\nsamples = 1\nsequence_length = 2", 1, 2),
        ('bits = 4\nmode = "mxfp4"', 32, 256),  # mlx rounds what has no grid to search
        ('recipe = "mixed_4_6"\nsamples = 1000000', 10**6, 256),
        ('bits = 5\noverrides = { "*.mlp.*" = { bits = 8 } }\ndtype = "float16"', 32, 256),
    ],
)
def test_a_calibrated_variant(settings: str, samples: int, length: int) -> None:
    spec = parse_spec(Path("artifacts.toml"), (CALIBRATED + TEXT + settings).encode())
    found = spec.variants["v"]
    assert found.learned is None
    assert found.calibrated == Calibrated(Path("text.txt").absolute(), samples, length)
    assert found.calibration == Path("text.txt").absolute()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ('target = "4.7bpw"', "target needs calibration beside it"),
        (TEXT + 'target = "1bpw"', 'target = "1bpw" is not from 2bpw to 16bpw'),
        (
            TEXT + 'target = "small"',
            'target = "small" is not a size; write, for example, "4.7bpw", "18GB" or "smallest"',
        ),
        (TEXT + "target = 5", "target: expected a string"),
        (TEXT + 'target = "5bpw"\nbits = 4', "target"),
        (TEXT + 'target = "5bpw"\nrounding = "nearby"', 'rounding = "nearby" is not possible'),
        (TEXT + 'bits = 4\nrounding = "nearest"', "rounding needs target or experts"),
        (TEXT + 'target = "5bpw"\nmethod = "gptq"', "target"),
        (TEXT + 'target = "5bpw"\ngroup_size = 48', "group_size = 48 is not possible with target"),
    ],
)
def test_a_size_that_cannot_be_meant(settings: str, says: str) -> None:
    assert says in problems(CALIBRATED + settings)


@pytest.mark.parametrize(
    ("text", "bits", "nbytes"),
    [
        ("4.7bpw", 4.7, None),
        ("5 bpw", 5.0, None),
        ("18GB", None, 18_000_000_000),
        ("80 MB", None, 80_000_000),
    ],
)
def test_a_size_is_bits_per_weight_or_bytes(text: str, bits: float | None, nbytes: int | None) -> None:
    declared = CALIBRATED + TEXT + f'target = "{text}"'
    variant = parse_spec(Path("artifacts.toml"), declared.encode()).variants["v"]
    assert variant.goal == Goal(bits, nbytes)
    assert variant.is_quantized
    assert variant.calibrated is not None


SEARCHES = """
[base.b]
path = "base"

[variant.v]
target = "smallest"
calibration = "text.txt"

[suite.own]
kind = "command"
command = "true"

[suite.same]
kind = "fidelity"
data = "text.txt"

[model.m]
base = "b"
variants = ["v"]
suites = ["own", "same"]
"""


def test_a_size_that_is_searched_needs_something_to_meet() -> None:
    assert (
        'variant "v" searches its size, but this model requires nothing; add [model.m.require]'
        in problems(SEARCHES)
    )
    own = problems(SEARCHES + '[model.m.require]\n"own.score" = ">= 1"\n"same.kl" = "<= 1"\n')
    assert own.count("searches its size") == 1
    assert '"own.score" comes from a command, which asks everything' in own


def test_a_size_that_is_searched_halves_the_suites_of_its_target_alone() -> None:
    declared = (
        SEARCHES.replace('["v"]', '["v", "w"]')
        + '[model.m.require]\n"same.kl" = "<= 1"\n[variant.w]\nbits = 4\n'
    )
    spec = parse_spec(Path("artifacts.toml"), declared.encode())
    searched, other = spec.targets
    assert [suite.part for suite in spec.suites_of(searched)] == ["all", "rest"]
    assert [(suite.name, suite.part) for suite in spec.search_suites(searched)] == [("same", "search")]
    assert {suite.part for suite in spec.suites_of(other)} == {"all"}


@pytest.mark.parametrize(
    ("start", "says"),
    [
        ('dtype = "bfloat16"', 'variant "v" starts from "s", which is not quantized; name an affine variant'),
        ('mode = "mxfp4"', 'starts from "s", whose mode "mxfp4" has no biases; name an affine variant'),
        ('gguf = "Q8_0"', 'starts from "s", which is a GGUF; name an affine variant'),
        (
            'method = "gptq"\nfrom = "f16"\ncalibration = "text.txt"\nbits = 4',
            'starts from "s", which is made whole; name an affine variant, with `bits`, `recipe` or `target`',
        ),
        (
            'bits = 4\nexperts = 0.5\ncalibration = "text.txt"',
            'starts from "s", which keeps fewer experts; name a variant with all experts in `start`',
        ),
        ("bits = 4", 'variant "v" starts from "s", which this model does not list; add it to variants'),
    ],
)
def test_a_variant_whose_scales_cannot_be_tuned(start: str, says: str) -> None:
    found = problems(HEAD + STARTED + start).splitlines()
    listed = "does not list" in says
    assert [line for line in found if says in line], found
    assert len(found) == 1 or listed


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ('method = "dwq"\nstart = "v"', 'starts from "v", which is this variant itself; name another one'),
        ('method = "dwq"\nstart = "f61"', 'variant "f61" is not declared; did you mean "f16"?'),
        ('method = "gptq"\nstart = "f16"', 'start is not for method "gptq" but for dwq; remove it'),
        ('method = "dwq"\nstart = "f16"\nbits = 4', "start"),
        ('start = "f16"', "method"),
    ],
)
def test_a_start_that_cannot_be(settings: str, says: str) -> None:
    found = problems(HEAD + settings)
    assert says in found, found


def test_a_start_has_the_bits() -> None:
    text = HEAD.replace('"v"]', '"v", "s"]') + STARTED + "bits = 3\n"
    spec = parse_spec(Path("artifacts.toml"), text.encode())
    variant = spec.variants["v"]
    assert variant.made_from == ("f16", "s")
    assert (variant.quantization, variant.is_quantized, variant.learned is not None) == (None, True, True)
