"""Publishing to Ollama, by a stand-in for its command: create, show, and what it does not have."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from builder.console.events import silent
from builder.publish import ollama
from builder.publish.bundle import Bundle, File, of_bytes
from builder.publish.errors import PlaceFailed, PlaceRefused
from builder.spec.destinations import OllamaPlace
from builder.store.format import open_store
from builder.store.statcache import StatCache

PLACE = OllamaPlace("phase8:5bit")
STAND_IN = """#!{python}
import hashlib, pathlib, sys
home = pathlib.Path({home!r})
if (home / "stopped").exists():
    sys.exit("Error: could not connect to ollama app, is it running?")
command, name = sys.argv[1:3]
kept = home / name.replace(":", "_")
if command == "create":
    text = pathlib.Path(sys.argv[4]).read_text()
    file = pathlib.Path(sys.argv[4]).parent / text.splitlines()[0].removeprefix("FROM ")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    kept.write_text("# Modelfile\\nFROM /blobs/sha256-" + digest + "\\n" + text.partition("\\n")[2])
elif not kept.exists():
    sys.exit("Error: model '" + name + "' not found")
else:
    print(kept.read_text())
"""


def bundle(folder: Path, content: bytes, system: str | None) -> Bundle:
    weights = folder / "weights"
    weights.write_bytes(content)
    made = of_bytes("m-exact-Q5_1.gguf", content)
    file = File(made.name, made.size, made.sha256, made.git, weights)
    text = of_bytes(ollama.MODELFILE, ollama.modelfile(file.name, system, "apache-2.0"))
    return Bundle("m_5bit", (file, text), "")


def test_created_known_and_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(tmp_path / "store")
    cache = StatCache(store)
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    first = bundle(tmp_path, b"GGUF one", 'Search, or "answer".')
    with pytest.raises(ollama.OllamaMissing, match="`ollama` is not on PATH"):
        ollama.plan(PLACE, first, cache)
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin/ollama"
    program.write_text(STAND_IN.format(python=sys.executable, home=str(tmp_path)))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))

    made = ollama.plan(PLACE, first, cache)
    assert not made.exists
    ollama.apply(PLACE, made, store, cache, silent)
    assert ollama.plan(PLACE, first, cache).is_empty
    assert 'SYSTEM """Search, or "answer"."""' in (tmp_path / "phase8_5bit").read_text()

    prompted = bundle(tmp_path, b"GGUF one", "Answer.")
    assert not ollama.plan(PLACE, prompted, cache).is_empty
    second = bundle(tmp_path, b"GGUF two", None)
    ollama.apply(PLACE, ollama.plan(PLACE, second, cache), store, cache, silent)
    assert ollama.plan(PLACE, second, cache).is_empty

    (tmp_path / "phase8_5bit").write_text(f"FROM /blobs/sha256-{'0' * 64}\n")
    with pytest.raises(PlaceRefused, match="was not put there by this program") as caught:
        ollama.plan(PLACE, second, cache)
    assert "ollama rm phase8:5bit" in str(caught.value)
    (tmp_path / "stopped").touch()
    with pytest.raises(PlaceFailed, match="could not connect to ollama app"):
        ollama.plan(PLACE, second, cache)


def test_a_text_that_ends_the_quotes_is_refused() -> None:
    with pytest.raises(ValueError, match="SYSTEM has"):
        ollama.modelfile("m.gguf", 'say """', None)
