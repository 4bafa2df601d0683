"""Results in the hub's own format, as the hub's client reads them; and what a licence makes us say."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from builder.errors import SpecError
from builder.evaluate.results import Result
from builder.evaluate.statistics import Figure
from builder.keys import Key
from builder.publish.benchmarks import entries
from builder.publish.contents import gather
from builder.publish.evidence import Licence, warning
from builder.publish.publication import find
from builder.spec.destinations import Benchmark
from builder.spec.parse import parse_spec
from tests.toy import DECLARATION, build, make_toy, prepared

RESULTS = {
    "routing": Result(
        Key("0" * 64),
        "m_4bit",
        "routing",
        "choice",
        {"greedy": Figure(0.9833333, 0.94, 0.995, 120), "accuracy": Figure(1.0, 1.0, 1.0, 120)},
        made={"at": "2026-11-26T06:00:00Z"},
    )
}


def test_a_file_for_each_benchmark() -> None:
    from huggingface_hub import parse_eval_result_entries

    declared = [
        Benchmark("routing", "greedy", "me/routing", "tools"),
        Benchmark("routing", "accuracy", "me/routing", "default"),
        Benchmark("calls", "rate", "me/calls", "default"),
    ]
    files, lacking = entries(declared, RESULTS)
    assert [file.name for file in files] == [".eval_results/me-routing.yaml"]
    assert lacking == ["calls.rate is not measured, so me/calls gets no result"]
    first, second = parse_eval_result_entries(yaml.safe_load(files[0].read()))
    assert (first.dataset_id, first.task_id, first.value) == ("me/routing", "tools", 0.983333)
    assert first.date == "2026-11-26T06:00:00Z"
    assert first.notes == "routing.greedy by modelkiln, n = 120, 95 % interval 0.940 to 0.995"
    assert second.notes == "routing.accuracy by modelkiln, n = 120"


PUBLISH = """
[suite.routing]
kind = "choice"
data = "rows.jsonl"
candidates = { tool = "T", direct = "D" }

[publish.hub]
target = "m_4bit"
to = "hf://me/m"
"""
WITH_SUITE = DECLARATION.replace('"8bit"]', '"8bit"]\nsuites = ["routing"]') + PUBLISH


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('"routing.greedy" = "me/routing"', '"me/routing" is not a task of a dataset; write OWNER/DATASET'),
        ('"routing.greedy" = "routing:a"', '"routing:a" is not a task of a dataset'),
        ('"routing.kl" = "me/routing:a"', 'suite "routing" has no figure "kl"'),
        ('"calls.rate" = "me/routing:a"', '"calls.rate": this model has no suite with a figure of that name'),
    ],
)
def test_what_cannot_be_declared(tmp_path: Path, line: str, said: str) -> None:
    file = tmp_path / "artifacts.toml"
    file.write_text(f"{WITH_SUITE}benchmarks = {{ {line} }}\n")
    with pytest.raises(SpecError) as refused:
        parse_spec(file)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (
            "license: cc-by-nc-4.0",
            "forbids commercial use, and so for this model: README.md of the base says",
        ),
        ("license: cc-by-nd-4.0", "may forbid publishing a changed model: README.md of the base says"),
        ("license: llama3.2", "has a licence of its own, read it before you publish: README.md of the base"),
        ("license: other", "has a licence of its own"),
        ("license: apache-2.0", None),
        ("license: mit", None),
    ],
)
def test_what_the_licence_of_the_base_says_is_quoted(said: str, expected: str | None) -> None:
    found = warning(Licence(said.partition(": ")[2], said, "README.md"))
    assert (found is None) == (expected is None)
    if found and expected:
        assert expected in found
        assert f'"{said}"' in found
    assert "name no licence, so the card names none" in str(warning(None))


def test_a_licence_that_forbids_is_said_with_each_publication(tmp_path: Path) -> None:
    file = make_toy(tmp_path / "project", DECLARATION + '\n[publish.disk]\ntarget = "m_4bit"\nto = "out"\n')
    (file.parent / "base/README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n# Toy\n")
    project = prepared(file)
    build(project, "m_4bit")
    bundle = gather(project, find(project, "disk"), lambda _: None)
    quoted = 'README.md of the base says "license: cc-by-nc-4.0"'
    assert any(quoted in note for note in bundle.notes)
    assert "license: cc-by-nc-4.0" in bundle.card
