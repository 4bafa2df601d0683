"""What a learned quantizer says of its progress, and how it is shown."""

from __future__ import annotations

import inspect
import io
from importlib import import_module

import pytest

from builder.console.events import Learning
from builder.console.lines import Plain
from builder.engine.progress import MARK, Step, Told, parsed


@pytest.fixture(autouse=True)
def no_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Told, "loss", None)


def steps(text: str) -> list[Step]:
    found = [parsed(line) for line in text.splitlines()]
    return [step for step in found if step is not None]


def test_a_loop_tells_its_start_and_its_end(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(Told(range(3), total=3, desc="Quantizing")) == [0, 1, 2]
    assert steps(capsys.readouterr().err) == [Step("Quantizing", 0, 3), Step("Quantizing", 3, 3)]


def test_a_loop_of_more_steps_than_it_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(Told(range(3), total=2)) == [0, 1, 2]  # mlx-lm divides and rounds down
    assert steps(capsys.readouterr().err)[-1] == Step("layers", 3, 3)


@pytest.mark.parametrize(
    ("text", "loss"),
    [
        ("Validation: it=0, loss=0.123", 0.123),
        ("loss=1.5e-05", 1.5e-05),
        ("Loss reduction: 0.75", 0.75),
        ("Loss reduction: array(0.5, dtype=float32)", None),
        ("loss=nan", None),
        ("nothing of the kind", None),
    ],
)
def test_losses_are_heard(text: str, loss: float | None) -> None:
    Told.write(text)
    assert Told.loss == loss
    Told.hear("")
    Told([]).set_description(desc=text)
    assert Told.loss == loss


@pytest.mark.parametrize(
    "line", ["", "Traceback", f"{MARK}", f"{MARK}[]", f"{MARK}{{}}", f'{MARK}{{"part": 1, "x": 2}}']
)
def test_other_lines_are_no_steps(line: str) -> None:
    assert parsed(line) is None


@pytest.mark.parametrize("name", ["dwq", "awq", "gptq", "dynamic_quant"])
def test_the_methods_use_tqdm_as_we_know_it(name: str) -> None:
    module = import_module(f"mlx_lm.quant.{name}")
    source = inspect.getsource(module)
    assert "from tqdm import tqdm" in source
    assert {part for part in ("pbar.update", ".n =", "tqdm.auto") if part in source} == set()


def test_plain_lines_say_loss_and_time_left() -> None:
    stream = io.StringIO()
    show = Plain(stream, every=0)
    show(Learning("m_q", "Quantizing", 0, 10, None))
    show._since -= 10
    show(Learning("m_q", "Quantizing", 5, 10, 0.25))
    first, second = stream.getvalue().splitlines()
    assert first == "m_q: Quantizing: 0 of 10"
    assert second == "m_q: Quantizing: 5 of 10  loss 0.25, 0:10 left"
