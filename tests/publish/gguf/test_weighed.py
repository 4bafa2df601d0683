"""K-quants with an importance matrix, from `doit publish:` to the card: killed, on a full disk, and again."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from builder.gguf import imatrix
from tests.conftest import Sandbox
from tests.publish.gguf.models import CONFIGS, importance, make_model

pytest.importorskip("gguf")
pytest.importorskip("xllamacpp")

DECLARATION = """
[base.tiny]
path = "tiny"

[variant.f16]
dtype = "float16"

[model.tiny]
base = "tiny"
variants = ["f16"]

[publish.gguf]
model = "tiny"
to = "out"
gguf = ["Q4_K_M", "Q2_K"]
calibration = "text.txt"
samples = 4
sequence_length = 16
"""


def project(make: Callable[[str], Sandbox], config: str = "llama") -> Sandbox:
    box = make(DECLARATION)
    wide = {"hidden_size": 256, "num_attention_heads": 8, "num_key_value_heads": 4, "intermediate_size": 192}
    make_model(box.root / "tiny", {**CONFIGS[config], **wide})
    words = [str(number) for number in random.Random(1).sample(range(10**6), 200)]
    (box.root / "text.txt").write_text(" ".join(words))
    return box


def made(box: Sandbox) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted((box.root / "out").glob("*.gguf"))}


@pytest.mark.slow
def test_published_killed_and_published_again(sandbox: Callable[[str], Sandbox]) -> None:
    box = project(sandbox)
    env = {**os.environ, "NO_COLOR": "1"}
    command = [sys.executable, "-m", "doit", "publish:gguf"]
    for sign in ("an importance matrix is made", "tiny as GGUF Q4_K_M"):
        with subprocess.Popen(command, cwd=box.root, env=env, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            for line in process.stderr:
                if sign in line:
                    break
            process.send_signal(signal.SIGKILL)
        assert not made(box), sign
    done = box.doit("publish:gguf")
    assert done.code == 0, done.text
    assert "an importance matrix is made" not in done.text, "the matrix of the killed run is used"
    assert "tiny-Q4_K_M.gguf has " in done.text
    assert "Q5_0 is for weights whose width is not a multiple of 256" in done.text
    card = (box.root / "out/README.md").read_text()
    assert "with an importance matrix: how large the inputs of each weight are on text.txt" in card
    first = made(box)
    assert len(first) == 2
    assert not (box.root / "store/models/tiny_f16").exists(), "no unquantized model is written"
    (matrix,) = importance(box)
    means = imatrix.read(matrix)
    assert means["blk.1.ffn_down.weight"].shape == (1, 192)

    again = box.doit("publish:gguf")
    assert "all the same" in again.out
    box.edit('calibration = "text.txt"\nsamples = 4\nsequence_length = 16\n', "")
    plain = box.doit("publish:gguf")
    assert plain.code == 0, plain.text
    assert made(box)["tiny-Q4_K_M.gguf"] != first["tiny-Q4_K_M.gguf"]
    assert "importance matrix" not in (box.root / "out/README.md").read_text()

    fresh = project(lambda text: sandbox(text, "fresh"))  # type: ignore[call-arg]
    assert fresh.doit("publish:gguf").code == 0
    assert made(fresh) == first, "a run that nobody killed makes the same bytes"


@pytest.mark.slow
def test_what_goes_wrong_is_one_line(sandbox: Callable[[str], Sandbox]) -> None:
    box = project(sandbox)
    (box.root / "text.txt").rename(box.root / "gone.txt")
    done = box.doit("publish:gguf")
    assert done.code != 0
    assert "text.txt does not exist" in done.text
    assert "Traceback" not in done.text
    (box.root / "text.txt").write_text("too short")
    done = box.doit("run", "--single", "publish:gguf")
    assert "it holds fewer than 16 tokens" in done.text
    assert "Traceback" not in done.text
    box.edit('calibration = "text.txt"\nsamples = 4\nsequence_length = 16\n', "")
    code = "import builder.gguf.quantizer as q; q.MODULE = 'no.such.module'"
    code += "; from doit.__main__ import main; main()"
    done = box.run(sys.executable, "-c", code, "run", "--single", "publish:gguf")
    assert done.code != 0
    assert "llama.cpp could not quantize" in done.text
    assert "its process ended with 1 (" in done.text
    assert "Traceback" not in done.text
    assert not made(box)


@pytest.mark.slow
@pytest.mark.skipif(
    os.name != "posix" or not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounts a disk"
)
def test_a_full_disk_is_one_line(sandbox: Callable[[str], Sandbox], tmp_path: Path) -> None:
    box = project(sandbox)
    assert box.doit("base:tiny").code == 0
    disk = tmp_path / "disk"
    disk.mkdir()
    size = sum(f.stat().st_size for f in (box.root / "store").rglob("*") if f.is_file()) // 1024 + 700
    script = (
        f"mount -t tmpfs -o size={size}k small {disk} || exit 99\n"
        f"cp -a {box.root}/. {disk}/ || exit 98\ncd {disk} && exec {sys.executable} -m doit publish:gguf\n"
    )
    done = box.run("unshare", "-m", "sh", "-c", script)
    if done.code in (98, 99) or "unshare" in done.err:
        pytest.skip("no disk can be mounted here")
    assert done.code == 2, done.text
    assert "No space left on device. [StoreFull]" in done.text
    assert "Traceback" not in done.text
