"""doit eval, run as a user runs it: a table, a cache, and requirements that fail."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from builder.evaluate import results
from builder.evaluate.command import CommandFailed, run_command
from builder.evaluate.results import Missed, Result, missed
from builder.evaluate.run import by_layer
from builder.evaluate.statistics import Figure, wilson
from builder.evaluate.worker.answers import CHECKS
from builder.keys import make_key
from builder.spec.types import Condition, Metric, Suite
from builder.store.format import open_store
from tests.conftest import Sandbox
from tests.tiny import DECLARATION, make_adapter, make_base, yes_or_no

SUITES = """
suites = ["routing", "calls", "ppl", "fidelity", "said", "own"]

[model.m.require]
"routing.accuracy" = ">= 0"

[suite.routing]
kind = "choice"
data = "rows.jsonl"
candidates = { yes = "yes", no = "no" }

[suite.calls]
kind = "exact"
data = "rows.jsonl"

[suite.ppl]
kind = "perplexity"
data = "text.txt"

[suite.fidelity]
kind = "fidelity"
data = "rows.jsonl"

[suite.said]
kind = "generate"
data = "rows.jsonl"
max_tokens = 3

[suite.own]
kind = "command"
command = "PYTHON own.py {model}"
""".replace("PYTHON", sys.executable)


def project(sandbox: Callable[[str], Sandbox]) -> Sandbox:
    box = sandbox(DECLARATION + SUITES)
    make_base(box.root / "base")
    make_adapter(box.root / "adapter")
    (box.root / "rows.jsonl").write_text(yes_or_no())
    (box.root / "own.py").write_text(
        "import json, sys, pathlib\n"
        "print('loading')\n"
        "print(json.dumps({'files': len(list(pathlib.Path(sys.argv[1]).iterdir())), 'n': 7}))\n"
    )
    (box.root / "text.txt").write_text("the quick brown fox " * 8)
    return box


def figures(box: Sandbox) -> dict[tuple[str, str], dict[str, float]]:
    found = {}
    for path in (box.root / "store" / "evals").rglob("*.json"):
        data = json.loads(path.read_text().split("\n")[0])
        found[data["target"], data["suite"]] = {k: v["value"] for k, v in data["figures"].items()}
    return found


def test_measured_once_then_known(sandbox: Callable[[str], Sandbox]) -> None:
    box = project(sandbox)
    first = box.doit("eval:m_4bit", "eval:m_f16")
    assert first.code == 0, first.text
    assert "routing.accuracy" in first.out
    assert "95 % interval" in first.out
    assert first.text.count("measuring the unquantized m for fidelity") == 1
    known = figures(box)
    assert known["m_f16", "fidelity"]["kl"] < 1e-4 < known["m_4bit", "fidelity"]["kl"]
    assert known["m_f16", "fidelity"]["agreement"] == 1
    assert 200 < known["m_f16", "ppl"]["perplexity"] < 500  # 320 random tokens

    assert known["m_4bit", "said"]["rate"] == 0
    assert known["m_4bit", "said"]["tokens_per_second"] > 0
    assert known["m_4bit", "own"]["files"] > 8

    again = box.doit("eval:m_4bit")
    assert "-- eval:m_4bit" in again.out
    assert "measuring" not in again.text

    box.edit('">= 0"', '">= 1.5"')
    failed = box.doit("eval:m_4bit")
    assert failed.code == 1
    assert "m_4bit misses its requirements: routing.accuracy >= 1.5: measured" in failed.text
    assert "measuring" not in failed.text

    for path in (box.root / "store" / "evals").rglob("*.json"):
        if '"suite": "ppl"' in path.read_text():
            path.write_text("damaged")
    (box.root / "rows.jsonl").write_text((box.root / "rows.jsonl").read_text().replace("no", "nn"))
    wrong = box.doit("eval:m_4bit")
    assert wrong.code == 1
    assert "label is 'nn', which is not a candidate (yes, no)" in wrong.text
    assert "Traceback" not in wrong.text


@pytest.mark.parametrize(
    ("check", "text", "answer", "right"),
    [
        ("exact", " yes\n", "yes", True),
        ("exact", "yes.", "yes", False),
        ("regex", "call 12", r"call \d+", True),
        ("regex", "call 12 now", r"call \d+", False),
        ("json", '{"b": 1, "a": [2]}', '{"a": [2], "b": 1}', True),
        ("json", '{"b": 1', '{"b": 1}', False),
        ("tool_call", 'Sure {x} {"tool": "f", "q": "1"} ok', '{"q": "1", "tool": "f"}', True),
        ("tool_call", '{"tool": "f", "q": "2"}', '{"q": "1", "tool": "f"}', False),
        ("tool_call", "no call", "no call", False),
        ("tool_call", '{"tool": "f"}', '{"tool": "f"} {"tool": "g"}', False),
        ("tool_call", '{"tool": "f"} and {"tool": "g"}', '{"tool": "f"}{"tool": "g"}', True),
        ("tool_call", '{"tool": "f"} {"tool": "f"}', '{"tool": "f"}', False),
        ("tool_call", '{"x": true}', '{"x": 1}', False),
        ("tool_call", '{"x": ' * 5000, '{"x": 1}', False),
        ("json", '{"x": 1}', '{"x": true}', False),
        ("json", '[{"x": 0}]', '[{"x": false}]', False),
        ("json", '{"x": 1.0}', '{"x": 1}', True),
        ("json", "[" * 5000, "[]", False),
    ],
)
def test_checks_of_generated_text(check: str, text: str, answer: str, right: bool) -> None:
    assert CHECKS[check](text, answer) is right


ONLY_CALLS = (
    ('suites = ["routing", "calls", "ppl", "fidelity", "said", "own"]', 'suites = ["calls"]'),
    ('"routing.accuracy" = ">= 0"', '"calls.rate" = ">= 0"'),
)


def watching(box: Sandbox, code: str) -> dict[str, str]:
    """An environment in which the scoring process runs `code` first."""
    lines = "".join(f"    {line}\n" for line in code.splitlines())
    (box.root / "sitecustomize.py").write_text(
        f"import os, sys\nif 'builder.evaluate.worker' in ' '.join(sys.orig_argv):\n{lines}"
    )
    return {"PYTHONPATH": str(box.root)}


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ("open('rows.jsonl', 'a').write('\\n')", "the questions of suite calls changed"),
        ("import shutil; shutil.rmtree('store/models/m_4bit')", "m_4bit changed"),
    ],
)
def test_what_changes_meanwhile_is_not_kept(
    sandbox: Callable[[str], Sandbox], change: str, what: str
) -> None:
    """ChangedMeanwhile, and the next run measures."""
    box = project(sandbox)
    for edit in ONLY_CALLS:
        box.edit(*edit)
    assert box.doit("model:m_4bit").code == 0
    late = f"import atexit\natexit.register(lambda: exec({change!r}))"
    ran = box.doit("eval:m_4bit", env=watching(box, late))
    assert ran.code == 2, ran.text
    assert what in ran.text
    assert "Traceback" not in ran.text
    assert not figures(box)
    assert box.doit("eval:m_4bit").code == 0


def test_one_model_in_memory_at_a_time(sandbox: Callable[[str], Sandbox]) -> None:
    box = project(sandbox)
    for edit in ONLY_CALLS:
        box.edit(*edit)
    assert box.doit("model").code == 0
    note = "open('log', 'a').write"
    code = f"import atexit\n{note}('begins ')\natexit.register(lambda: {note}('ends '))"
    ran = box.doit("-n", "2", "eval", env=watching(box, code))
    assert ran.code == 0, ran.text
    assert (box.root / "log").read_text() == "begins ends " * 2
    assert ran.text.count("waiting for another evaluation to end") == 1


def test_an_evaluation_builds_its_targets_in_one_pass(sandbox: Callable[[str], Sandbox]) -> None:
    box = project(sandbox)
    for edit in ONLY_CALLS:
        box.edit(*edit)
    ran = box.doit("run", "--progress", "json", "eval")
    assert ran.code == 0, ran.text
    events = [json.loads(line) for line in ran.err.splitlines() if line.startswith("{")]
    passes = [sorted(event["targets"]) for event in events if event["event"] == "PassStarted"]
    assert passes == [["4bit", "5bit"]]


def test_an_unquantized_intermediate_is_measured_without_being_built(
    sandbox: Callable[[str], Sandbox],
) -> None:
    box = project(sandbox)
    box.edit(', "said", "own"]', "]")
    ran = box.doit("eval:m_f16")
    assert ran.code == 0, ran.text
    assert not box.view("m_f16").exists()
    unbuilt = figures(box)
    for path in (box.root / "store" / "evals").rglob("*.json"):
        path.unlink()
    assert box.doit("model:m_f16").code == 0
    assert box.doit("eval:m_f16").code == 0
    for suite, values in figures(box).items():
        assert unbuilt[suite] == pytest.approx(values, rel=1e-5, abs=1e-7)
    assert unbuilt["m_f16", "fidelity"]["kl"] > 0  # float16, where the reference is what the base was


@pytest.mark.parametrize(
    ("rows", "kind", "more", "what"),
    [
        ("{", "exact", "", "line 1:"),
        ('{"text": "a"}', "generate", "", "kind generate needs rows with an answer, not plain text"),
        ('{"prompt": "a", "completion": "("}', "generate", 'check = "regex"', "is not a regular expression"),
        ('{"prompt": "a", "completion": "{"}', "generate", 'check = "json"', "is not JSON"),
        ('{"prompt": "a", "completion": "b"}', "generate", 'check = "tool_call"', "has no JSON object"),
    ],
)
def test_wrong_questions_are_a_failure_with_their_own_words(
    sandbox: Callable[[str], Sandbox], rows: str, kind: str, more: str, what: str
) -> None:
    box = project(sandbox)
    for edit in ONLY_CALLS:
        box.edit(*edit)
    box.edit('[suite.calls]\nkind = "exact"', f'[suite.calls]\nkind = "{kind}"\n{more}')
    (box.root / "rows.jsonl").write_text(rows + "\n")
    ran = box.doit("eval:m_4bit")
    assert ran.code == 1, ran.text
    assert f"suite calls: {box.root}/rows.jsonl: " in ran.text
    assert what in ran.text
    assert "Correct the file, or `data` in artifacts.toml." in ran.text
    assert "Traceback" not in ran.text


@pytest.mark.parametrize(
    ("command", "what"),
    [
        ("unbalanced '", "No closing quotation"),
        ("", "no words"),
        (f"{sys.executable} -c 'print(dict(n=1))'", "did not print a JSON object of numbers"),
        ("""printf '{"a": NaN}'""", "a is nan, which is not a finite number"),
        ("""printf '{"a": 1, "n": Infinity}'""", "n is inf, which is not a count"),
        ("""printf '{"a": 1, "n": 2.5}'""", "n is 2.5, which is not a count"),
        ("printf '\\377'", "did not print a JSON object of numbers"),
        ("no-such-program-1 {model}", "No such file"),
        (f"{sys.executable} -c 'raise SystemExit(3)'", "ended with exit code 3"),
        (f"{sys.executable} -c 'print(1)'", "did not print a JSON object of numbers"),
    ],
)
def test_a_failing_command_is_named(tmp_path: Path, command: str, what: str) -> None:
    with pytest.raises(CommandFailed, match=what):
        run_command(Suite("own", "command", command=command), tmp_path, tmp_path)


def test_a_command_that_takes_too_long_is_stopped_with_all_that_it_started(tmp_path: Path) -> None:
    suite = Suite("own", "command", command="sh -c 'sleep 60 & sleep 60; echo {}'", timeout=1)
    with pytest.raises(CommandFailed, match="stopped after 1 seconds"):  # and its pipes are closed
        run_command(suite, tmp_path, tmp_path)


def test_a_rate_of_a_command_has_an_interval(tmp_path: Path) -> None:
    def measure(text: str) -> dict[str, Figure]:
        (tmp_path / "figures.json").write_text(text)
        return run_command(Suite("own", "command", command="cat figures.json"), tmp_path, tmp_path)

    measured = measure('{"accuracy": 0.9, "seconds": 2.5, "n": 100}')
    low, high = wilson(90, 100)
    assert measured == {"accuracy": Figure(0.9, low, high, 100), "seconds": Figure(2.5, None, None, 100)}
    measured = measure('{"accuracy": 0.9, "seconds": 0.5, "n": {"accuracy": 100}}')
    assert measured == {"accuracy": Figure(0.9, low, high, 100), "seconds": Figure(0.5, None, None, 1)}
    assert measure('{"accuracy": 0.9}') == {"accuracy": Figure(0.9, None, None, 1)}


def test_a_changed_script_is_measured_again(sandbox: Callable[[str], Sandbox]) -> None:
    box = project(sandbox)
    box.edit('suites = ["routing", "calls", "ppl", "fidelity", "said", "own"]', 'suites = ["own"]')
    box.edit('"routing.accuracy" = ">= 0"', '"own.files" = ">= 0"')
    assert "measuring m_4bit: own" in box.doit("eval:m_4bit").text
    assert "measuring" not in box.doit("eval:m_4bit").text
    script = box.root / "own.py"
    script.write_text(script.read_text() + "# another\n")
    assert "measuring m_4bit: own" in box.doit("eval:m_4bit").text


def test_a_miss_says_by_how_much() -> None:
    key = make_key("eval/1", "x")
    known = {"s": Result(key, "t", "s", "choice", {"accuracy": Figure(0.9, 0.8, 0.95, 120)})}
    conditions = [Condition(Metric("s", "accuracy"), op, 0.9) for op in (">=", "<=", ">", "<")]
    found = missed((*conditions, Condition(Metric("other", "kl"), "<", 1)), known)
    assert found == [
        Missed(conditions[2], 0.9),
        Missed(conditions[3], 0.9),
        Missed(Condition(Metric("other", "kl"), "<", 1), None),
    ]
    assert str(Missed(Condition(Metric("s", "accuracy"), ">=", 0.95), 0.9)) == (
        "s.accuracy >= 0.95: measured 0.9, misses by 0.05"
    )


def test_a_result_is_read_as_it_was_written(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    key = make_key("eval/1", "x")
    result = Result(
        key,
        "t",
        "s",
        "choice",
        {"accuracy": Figure(0.9, 0.8, 0.95, 120)},
        {"accuracy": (1.0, 0.0)},
        {"blas": "x"},
    )
    results.write(store, result)
    assert results.read(store, key) == result
    place = results.path(store, key)
    place.write_bytes(place.read_bytes().replace(b"0.95", b"0.96"))
    assert results.read(store, key) is None


def test_by_layer_when_float32_does_not_fit() -> None:
    structure = SimpleNamespace(parameters=[SimpleNamespace(tensor=SimpleNamespace(shape=(1000, 700)))])
    target: Any = SimpleNamespace(base=SimpleNamespace(structure=structure))
    assert not by_layer(target, 4_000_000)
    assert by_layer(target, 3_999_000)


def test_it_says_how_far_it_is(sandbox: Callable[[str], Sandbox]) -> None:
    """Every suite of questions ends with all of them done; by layer, with all of the layers."""
    box = project(sandbox)
    box.edit('suites = ["routing", "calls", "ppl", "fidelity", "said", "own"]', 'suites = ["calls", "said"]')
    box.edit('"routing.accuracy" = ">= 0"', '"calls.rate" = ">= 0"')
    ran = box.doit("run", "--progress", "json", "eval:m_4bit")
    assert ran.code == 0, ran.text
    events = [json.loads(line) for line in ran.err.splitlines() if line.startswith("{")]
    scored = [(e["target"], e["done"], e["total"]) for e in events if e["event"] == "Scored"]
    assert ("m_4bit", 6, 6) in scored
    assert all(done <= total for _, done, total in scored)
    assert sum(done == total for _, done, total in scored) == 2
    assert "modelkiln progress" not in ran.text


def test_a_worker_that_dies_is_one_line(sandbox: Callable[[str], Sandbox]) -> None:
    box = project(sandbox)
    for edit in ONLY_CALLS:
        box.edit(*edit)
    assert box.doit("model:m_4bit").code == 0
    ran = box.doit("eval:m_4bit", env=watching(box, "os.kill(os.getpid(), 9)"))
    assert ran.code == 2
    assert "eval:m_4bit: the scoring process ended with -9" in ran.text
    assert "Traceback" not in ran.text
