"""Asks a GGUF in llama.cpp, as its chat template says, at temperature 0; with --picture in a real terminal.

uv run python docs/llama.py store/models/phase8_exact_gguf/model-00001-of-00033.gguf "Find all view functions"
uv run python docs/llama.py FILE QUESTION --picture docs/llama.png    # needs tmux and chromium
"""

from __future__ import annotations

import argparse
import html
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

SYSTEM = "Django assistant. Search the code or answer."
_COLUMNS, _WIDTH, _HEIGHT = 96, 920, 260
_PAGE = """<!doctype html><meta charset="utf-8"><body style="margin:0;background:#1c1f24">
<pre style="margin:0;padding:22px 26px;color:#dfe3e8;font:15px/1.45 'DejaVu Sans Mono',monospace">{}</pre>"""


def answers(file: Path, questions: list[str]) -> list[str]:
    """What llama.cpp answers to each question."""
    import xllamacpp  # type: ignore[import-not-found, unused-ignore]

    params: Any = xllamacpp.CommonParams()
    params.model.path = str(file)
    params.n_ctx, params.n_parallel, params.verbosity = 1024, 1, -1
    server: Any = xllamacpp.Server(params)
    found = []
    for question in questions:
        messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
        asked = {"messages": messages, "temperature": 0, "max_tokens": 60}
        found.append(str(server.handle_chat_completions(asked)["choices"][0]["message"]["content"]))
    return found


def picture(file: Path, questions: list[str], to: Path) -> None:
    """The command and its answer on a real terminal, as a PNG."""
    from docs.capture import ROOT, Terminal

    words = ["python", "docs/llama.py", os.path.relpath(file, ROOT), *questions]
    terminal = Terminal(ROOT, _COLUMNS)
    try:
        shown = terminal.run(shlex.join(words))[1]
    finally:
        terminal.close()
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "page.html"
        page.write_text(_PAGE.format(html.escape(shown.strip())), encoding="utf-8")
        subprocess.run(
            [
                "chromium",
                "--headless",
                "--no-sandbox",
                "--hide-scrollbars",
                "--force-device-scale-factor=2",
                f"--user-data-dir={folder}/profile",
                f"--window-size={_WIDTH},{_HEIGHT}",
                f"--screenshot={to.absolute()}",
                page.as_uri(),
            ],
            check=True,
            capture_output=True,
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("question", nargs="+")
    parser.add_argument("--picture", type=Path)
    asked = parser.parse_args()
    if asked.picture:
        picture(asked.file, asked.question, asked.picture)
        return 0
    for question, answer in zip(asked.question, answers(asked.file, asked.question), strict=True):
        print(f"\n> {question}\n{answer}")
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    sys.exit(main())
