"""Every documented error, provoked through the real command line: its text, its exit code, no traceback.

A new error belongs into PROVOKED with what provokes it, or is named in the test that provokes it elsewhere.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from builder.errors import BuildError
from docs.reference_pages import error_classes
from tests.architectures import REGISTRY, checkpoint, moe
from tests.conftest import ROOT, Ran, Sandbox
from tests.tiny import DECLARATION, make_adapter, make_base

Make = Callable[..., Sandbox]
Provoke = Callable[[Sandbox], Ran]


def builder(box: Sandbox, *args: str) -> Ran:
    return box.builder(*args)


# -- without loading mlx -----------------------------------------------------------------------------------


def spec_error(box: Sandbox) -> Ran:
    box.edit("bits = 4", "bits = 7")
    return box.doit()


def store_error(box: Sandbox) -> Ran:
    (box.root / "store").mkdir()
    (box.root / "store" / "version").write_text("99\n")
    return box.doit("status")


def source_missing(box: Sandbox) -> Ran:
    box.edit('path = "base"', 'path = "nowhere"')
    return box.doit()


def source_invalid(box: Sandbox) -> Ran:
    (box.root / "base").mkdir()
    return box.doit()


def package_missing(box: Sandbox) -> Ran:
    box.edit('path = "base"', 'gguf = "no_such_package:x.gguf"')
    return box.doit()


def undownloaded(box: Sandbox) -> Ran:
    box.edit('path = "base"', 'hf = "nobody/nothing"\nrevision = "main"')
    return box.doit(
        "base:tiny",
    )


def store_gone(box: Sandbox) -> Ran:
    """A store on a disk that was mounted yesterday."""
    box.toml.write_text(f'[store]\npath = "../shared"\n\n{box.toml.read_text()}')
    assert box.doit("list").code == 0
    (box.root.parent / "shared").rename(box.root.parent / "away")
    ran = box.doit("status")
    assert not (box.root.parent / "shared").exists()
    return ran


def already_there(box: Sandbox) -> Ran:
    return builder(box, "init")


PROVOKED: Mapping[str, Provoke] = {
    "SpecError": spec_error,
    "StoreError": store_error,
    "StoreGone": store_gone,
    "NotBuilt": lambda box: builder(box, "path", "m_4bit"),
    "UnknownBase": lambda box: builder(box, "path", "base:nope"),
    "SourceMissing": source_missing,
    "SourceInvalid": source_invalid,
    "PackageMissing": package_missing,
    "AlreadyThere": already_there,
    "UnknownTask": lambda box: box.doit("m_7bit"),
    "UnknownTarget": lambda box: box.doit("why", "m_7bit"),
    "NoSuchModel": lambda box: builder(box, "add-variant", "n", "6bit"),
    "BadVariant": lambda box: builder(box, "add-variant", "m", "best"),
}


# -- with mlx ----------------------------------------------------------------------------------------------


def with_sources(box: Sandbox) -> Path:
    make_base(box.root / "base")
    make_adapter(box.root / "adapter")
    return box.root / "base" / "config.json"


def model_unloadable(box: Sandbox) -> Ran:
    config = with_sources(box)
    config.write_text(config.read_text().replace('"qwen3"', '"no_such_type"'))
    return box.doit()


def remote_code(box: Sandbox) -> Ran:
    config = with_sources(box)
    config.write_text(json.dumps({**json.loads(config.read_text()), "model_file": "mine.py"}))
    return box.doit()


def not_finite(box: Sandbox) -> Ran:
    import mlx.core as mx

    with_sources(box)
    for file in (box.root / "base").glob("*.safetensors"):
        tensors = dict(mx.load(str(file)))
        if "model.layers.1.mlp.up_proj.weight" in tensors:
            tensors["model.layers.1.mlp.up_proj.weight"] *= float("nan")
            mx.eval(tensors)
            mx.save_safetensors(str(file), tensors)
    return box.doit()


def adapter_mismatch(box: Sandbox) -> Ran:
    import mlx.core as mx

    from tests.tiny import save_adapter

    with_sources(box)
    file = box.root / "adapter" / "adapters.safetensors"
    tensors = dict(mx.load(str(file)))
    name = "model.layers.3.self_attn.q_proj.lora_a"
    tensors[name] = mx.zeros((64, 4))
    save_adapter(box.root / "adapter", tensors)
    return box.doit()


def plain(box: Sandbox) -> None:
    """The declaration without its adapter."""
    text = box.toml.read_text()
    text = re.sub(r"\[adapter\.\w+\]\n[^\[]*", "", text)
    box.toml.write_text(re.sub(r'adapter = "\w+"', 'base = "tiny"', text))


def unquantizable(box: Sandbox) -> Ran:
    plain(box)
    checkpoint(box.root / "base", next(each for each in REGISTRY if each.name == "afm7"))
    return box.doit()


def not_dequantizable(box: Sandbox) -> Ran:
    """Experts in nvfp4 with a scale of the whole tensor, which mlx-lm forgets."""
    from mlx_lm.utils import load_model, quantize_model, save_config, save_model

    plain(box)
    box.edit('path = "base"', 'path = "base"\ndequantize = true')
    model, config = load_model(checkpoint(box.root / "plain", moe("qwen3_moe")))
    model, config = quantize_model(model, config, 16, 4, mode="nvfp4", global_scale=True)
    save_model(box.root / "base", model)
    save_config(config, box.root / "base" / "config.json")
    return box.doit()


def layout_changed(box: Sandbox) -> Ran:
    """An mlx-lm that keeps other layers than it did when the base was inspected."""
    import mlx_lm

    with_sources(box)
    assert box.doit("base:tiny", "adapter:tuned").code == 0
    copy = box.root / "upgraded"
    shutil.copytree(Path(next(iter(mlx_lm.__path__))), copy / "mlx_lm")
    model = copy / "mlx_lm/models/qwen3.py"
    kept = "\n\nModel.quant_predicate = property(lambda self: lambda path, module: 'v_proj' not in path)\n"
    model.write_text(model.read_text() + kept)
    return box.doit(env={"PYTHONPATH": str(copy)})


def store_full(box: Sandbox) -> Ran:
    """A disk that fills up after the check of its room."""
    with_sources(box)
    full = "inject=rename,renameat,renameat2:error=ENOSPC"
    return box.run("strace", "-f", "-qq", "-o", "/dev/null", "-e", full, sys.executable, "-m", "doit")


def plan_error(box: Sandbox) -> Ran:
    with_sources(box)
    box.edit("bits = 5\n", 'bits = 5\noverrides = { "*.v_porj" = { bits = 8 } }\n')
    return box.doit("model:m_5bit")


def measured(box: Sandbox, suite: str) -> Ran:
    with_sources(box)
    box.toml.write_text(f'{box.toml.read_text()}suites = ["s"]\n\n[suite.s]\n{suite}\n')
    return box.doit("eval:m_4bit")


def data_invalid(box: Sandbox) -> Ran:
    (box.root / "rows.jsonl").write_text("no JSON\n")
    return measured(box, 'kind = "exact"\ndata = "rows.jsonl"')


def command_failed(box: Sandbox) -> Ran:
    return measured(box, 'kind = "command"\ncommand = "false"')


SLOW: Mapping[str, Provoke] = {
    "PlanError": plan_error,
    "DataInvalid": data_invalid,
    "CommandFailed": command_failed,
    "Unquantizable": unquantizable,
    "NotDequantizable": not_dequantizable,
    "LayoutChanged": layout_changed,
    "StoreFull": store_full,
    "ModelUnloadable": model_unloadable,
    "RemoteCode": remote_code,
    "NotFinite": not_finite,
    "AdapterMismatch": adapter_mismatch,
    "Undownloaded": undownloaded,
}

ELSEWHERE: Mapping[str, str] = {
    "SourceError": "the common name of what sources raise",
    "EngineError": "needs a GPU with too little memory; tests/engine/test_stream.py",
    "BlobMissing": "needs another program that deletes blobs within milliseconds",
    "SourceChanged": "provoked in tests/project/test_watch.py",
    "GcRefused": "provoked in tests/commands/test_gc.py",
    "BadOption": "provoked in tests/commands/test_gc.py",
    "NoRoom": "provoked in tests/commands/test_gc.py",
    "NoMemory": "provoked in tests/commands/test_gc.py",
    "NoMemoryWhole": "provoked in tests/build/test_tuned.py",
    "SourceNotBuilt": "needs an intermediate that vanishes between its task and the one that reads it",
    "StepFailed": "provoked in tests/build/test_learned.py",
    "EvaluationFailed": "provoked in tests/evaluate/test_run.py",
    "RequirementMissed": "provoked in tests/evaluate/test_run.py",
    "QuestionsMissing": "provoked in tests/evaluate/test_run.py",
    "ReleaseRefused": "provoked in tests/release/test_production.py",
    "NoFormer": "provoked in tests/release/test_production.py",
    "UnknownModel": "provoked in tests/report/test_page.py",
    "NonePasses": "provoked in tests/evaluate/test_threshold.py",
    "NothingDeclared": "provoked in tests/test_api.py",
    "SeveralTargets": "provoked in tests/test_api.py",
    "Unwritable": "provoked in tests/commands/test_daily.py",
    "NoSizePasses": "provoked in tests/release/test_smallest.py",
    "BaseNotReady": "needs a base that is replaced between its task and that of the adapter",
    "NothingToRequire": "provoked in tests/evaluate/test_threshold.py",
}


def pattern(name: str) -> str:
    """The message of an error as a regular expression."""
    (kind,) = (kind for kind in error_classes() if kind.__name__ == name)
    template = " ".join((kind.__doc__ or "").split())
    return ".+".join(re.escape(part) for part in re.split(r"\{\w+\}", template))


def exit_code(name: str) -> int:
    (kind,) = (kind for kind in error_classes() if kind.__name__ == name)
    return kind.exit_code


def check(name: str, ran: Ran) -> None:
    assert re.search(rf"{pattern(name)}.* \[{name}\]", " ".join(ran.err.split())), ran.text
    assert "Traceback" not in ran.text
    assert ran.code == exit_code(name), ran.text


@pytest.mark.parametrize("name", PROVOKED)
def test_provoked(sandbox: Make, name: str) -> None:
    check(name, PROVOKED[name](sandbox(DECLARATION)))


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_provoked_with_mlx(sandbox: Make, name: str) -> None:
    check(name, SLOW[name](sandbox(DECLARATION)))


def test_every_documented_error_is_accounted_for() -> None:
    documented = {kind.__name__ for kind in error_classes() if kind is not BuildError}
    here = {*PROVOKED, *SLOW, *ELSEWHERE}
    assert here <= documented
    others = " ".join(file.read_text() for file in (ROOT / "tests").rglob("*.py") if file != Path(__file__))
    assert [name for name in sorted(documented - here) if not re.search(rf"\b{name}\b", others)] == []
