"""The model card in each view: what this is, from what, what was measured, how to load it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from builder.console import markdown
from builder.console.words import size_text
from builder.spec.types import Base, GgufSource, HfSource
from builder.store.types import Manifest


@dataclass(frozen=True)
class Score:
    """A figure as text: "routing.accuracy", "0.983", "0.941 to 0.995", "120"; no interval: empty."""

    name: str
    value: str
    interval: str
    n: str


class Circumstances(Protocol):
    """When, on what and with what the scores were measured."""

    @property
    def when(self) -> str: ...
    @property
    def where(self) -> str: ...
    @property
    def how(self) -> str: ...


def render(
    manifest: Manifest,
    base: Base,
    name: str,
    scores: Sequence[Score] = (),
    measured: Circumstances | None = None,
) -> str:
    """The card of the target `name` as Markdown, with the front matter that model hubs read."""
    parts = [_front(base, manifest), f"# {name}", summary(manifest, base), facts_table(manifest)]
    names = sorted(entry.name for entry in manifest.files)
    gguf = next((each for each in names if each.endswith(".gguf")), "")
    parts += [_scores(scores, measured), _llama_cpp(gguf) if gguf else _loading(name)]
    return "\n\n".join(parts) + "\n"


def _front(base: Base, manifest: Manifest) -> str:
    library = "gguf" if "gguf" in manifest.settings else "mlx"
    lines = ["---", f"library_name: {library}", "tags:", f"- {library}"]
    if isinstance(base.source, HfSource):
        lines.append(f"base_model: {base.source.repo}")
    return "\n".join([*lines, "---"])


def summary(manifest: Manifest, base: Base) -> str:
    """The base, the adapter and the bits in one sentence."""
    adapter = manifest.inputs.get("adapter")
    worn = f" with the adapter `{adapter}` fused into it" if adapter else ""
    bits = manifest.settings.get("bits")
    how = f", quantized to {bits} bits" if bits else ""
    made = f"as GGUF {gguf} for llama.cpp" if (gguf := manifest.settings.get("gguf")) else "in MLX format"
    return f"The base `{base.name}` ({origin(base)}){worn}{how}, {made}. Made by modelkiln."


def origin(base: Base) -> str:
    """Where a base comes from, without the folders of this machine."""
    match base.source:
        case HfSource(repo=repo, revision=revision):
            return f"{repo}, revision {revision}" if revision else repo
        case GgufSource(path=path):
            return path.name
        case source:
            return source.path.name


def facts_table(manifest: Manifest) -> str:
    """What a target is: its size, its settings, the digests of what it came from."""
    measures, rows = manifest.measures, [("size", size_text(manifest.size))]
    if "bits_per_weight" in measures:
        rows.append(("bits per weight", f"{measures['bits_per_weight']}"))
    rows += [(name.replace("_", " "), str(value)) for name, value in manifest.settings.items()]
    if "survival_db" in measures:
        rows.append(("adapter against rounding error", f"{measures['survival_db']} dB"))
    rows.append(("key", f"`{manifest.key}`"))
    for kind in ("base", "adapter", "calibration"):
        if f"{kind}_digest" in manifest.inputs:
            rows.append((f"{kind} digest", f"`{manifest.inputs[f'{kind}_digest']}`"))
    rows += [(name, str(manifest.toolchain[name])) for name in ("toolchain", "machine", "made")
             if name in manifest.toolchain]  # fmt: skip
    return "\n".join(markdown.table(("", ""), rows))


def _scores(scores: Sequence[Score], measured: Circumstances | None) -> str:
    if not scores:
        return "## Scores\n\nNot measured."
    rows = [(score.name, score.value, score.interval or "-", score.n) for score in scores]
    said = f"\n\nMeasured {measured.when}, on {measured.where}, with {measured.how}." if measured else ""
    return "## Scores\n\n" + "\n".join(markdown.table(("figure", "value", "95 % interval", "n"), rows)) + said


def _loading(name: str) -> str:
    return f"""## Load it

The folder of this file is a whole model.

```sh
mlx_lm.generate --model . --prompt "Hello" --max-tokens 100
mlx_lm.server --model .
```

```python
from mlx_lm import generate, load

model, tokenizer = load(".")
messages = [{{"role": "user", "content": "Hello"}}]
prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
print(generate(model, tokenizer, prompt=prompt, max_tokens=100))
```

LM Studio looks for models in `~/.lmstudio/models/PUBLISHER/MODEL`: put a copy of this folder there
(`mkdir -p ~/.lmstudio/models/local && cp -Rc . ~/.lmstudio/models/local/{name}`; on APFS, `-c` clones it
and takes no space)."""


def _llama_cpp(first: str) -> str:
    return f"""## Run it

llama.cpp reads the first file and finds the others beside it. The files that are not .gguf are for measuring.

```sh
llama-cli -m {first} -p Hello
llama-server -m {first}
```

`[publish.NAME]` with this target joins the files to one."""
