"""Publishing to Ollama on this machine: its own command takes a GGUF and a Modelfile.

Ollama uses the chat template in the GGUF. So the Modelfile has the file, the system prompt and the licence.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from builder.console.events import Emit, Note
from builder.publish.bundle import Action, Bundle, Change, File, Plan
from builder.publish.errors import PlaceFailed, PlaceRefused
from builder.spec.destinations import OllamaPlace
from builder.store import tmp
from builder.store.disk import capability
from builder.store.layout import Store
from builder.store.statcache import StatCache

MODELFILE = "Modelfile"
_FACT = "ollama"
_FROM = re.compile(r"^FROM .*sha256[-:]([0-9a-f]{64})", re.MULTILINE)
_SYSTEM = re.compile(r'^SYSTEM (?:"""(.*?)"""|(.*?))$', re.MULTILINE | re.DOTALL)


class OllamaMissing(PlaceFailed):
    """{to}: the command `ollama` is not on PATH."""

    hint = "Install Ollama from ollama.com, and start it."


def modelfile(file: str, system: str | None, licence: str | None) -> bytes:
    """The Modelfile for a GGUF beside it. Raises ValueError for a text that cannot stand in one."""
    lines = [f"FROM ./{file}"]
    for command, text in (("SYSTEM", system), ("LICENSE", licence)):
        if text is not None and '"""' in text:
            raise ValueError(f'{command} has """, which a Modelfile cannot hold')
        if text is not None:
            lines.append(f'{command} """{text}"""')
    return ("\n".join(lines) + "\n").encode()


def plan(place: OllamaPlace, bundle: Bundle, cache: StatCache) -> Plan:
    """What Ollama has under the name. Raises PlaceRefused for a model that is not ours, PlaceFailed."""
    shown = _run(place, ["show", place.name, "--modelfile"])
    weights, text = _parts(bundle)
    if shown.returncode != 0:
        if "not found" not in (shown.stderr + shown.stdout).lower():
            raise PlaceFailed(
                to=place, what=_last(shown), hint="Is Ollama running? `ollama serve` starts it."
            )
        return Plan(str(place), bundle, _changes(weights, text, "send"), exists=False)
    found = _FROM.search(shown.stdout)
    digest = found[1] if found else ""
    if digest == weights.sha256 and _system(shown.stdout) == _system(text.read().decode()):
        return Plan(str(place), bundle, _changes(weights, text, "same"), exists=True)
    ours = cache.get(_FACT, place.name)
    if not digest or (ours or b"").decode() != digest:
        what = "a model of this name exists, and was not put there by this program"
        raise PlaceRefused(to=place, what=what, hint=f"Name another, or remove it: ollama rm {place.name}")
    return Plan(str(place), bundle, _changes(weights, text, "send"), exists=True)


def apply(place: OllamaPlace, made: Plan, store: Store, cache: StatCache, emit: Emit) -> None:
    """Has Ollama take the file. It shows the new model when it has all of it. Raises PlaceFailed."""
    weights, text = _parts(made.bundle)
    emit(Note(f"ollama create {place.name}"))
    with tmp.new_folder(store) as folder:
        _lend(weights, folder / weights.name)
        (folder / MODELFILE).write_bytes(text.read())
        done = _run(place, ["create", place.name, "-f", str(folder / MODELFILE)])
    if done.returncode != 0:
        raise PlaceFailed(to=place, what=_last(done))
    cache.put(_FACT, place.name, weights.sha256.encode())
    if not plan(place, made.bundle, cache).is_empty:
        raise PlaceFailed(to=place, what="Ollama took the model, and shows another file under the name")


def _parts(bundle: Bundle) -> tuple[File, File]:
    weights = next(file for file in bundle.files if file.name.endswith(".gguf"))
    return weights, next(file for file in bundle.files if file.name == MODELFILE)


def _changes(weights: File, text: File, action: Action) -> tuple[Change, ...]:
    return tuple(Change(file.name, file.size, action) for file in (weights, text))


def _lend(file: File, target: Path) -> None:
    """The file for Ollama to read, which copies it into a store of its own."""
    assert isinstance(file.source, Path)
    for way in (capability.reflink, capability.hardlink):
        try:
            way(file.source, target)
            return
        except OSError:
            target.unlink(missing_ok=True)
    shutil.copyfile(file.source, target)


def _system(text: str) -> str:
    found = _SYSTEM.search(text)
    return ((found[1] if found[1] is not None else found[2]) if found else "").strip()


def _run(place: OllamaPlace, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    program = shutil.which("ollama")
    if program is None:
        raise OllamaMissing(to=place)
    return subprocess.run([program, *arguments], capture_output=True, text=True, check=False)


def _last(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line.strip() for line in (done.stderr + done.stdout).splitlines() if line.strip()]
    return lines[-1][:200] if lines else f"ollama ended with {done.returncode}"
