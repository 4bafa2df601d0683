"""Makes docs/terminal.md: what commands look like in real terminals of 80 and 140 columns, and in a pipe.

uv run python docs/capture.py          # needs tmux and git; takes about two minutes
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
HEAD = """# What it looks like

These screens were captured from real terminals of 80 and 140 columns, and from a pipe, by
`docs/capture.py` (tmux). Colours are not shown here. On a terminal, `doit status` colours the state: green
is built or passes, yellow is out of date, red is not built or misses. Every colour also has a word.
`NO_COLOR=1` turns colour off. A narrow terminal shows fewer columns.
"""


def project(folder: Path) -> Path:
    """A copy of the repository's files with an empty store."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in filter(None, names.stdout.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


class Terminal:
    """A tmux session of one size, in a project."""

    def __init__(self, folder: Path, columns: int) -> None:
        self.name = f"capture{columns}"
        env = {
            **os.environ,
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "PS1": "$ ",
            "TERM": "xterm-256color",
        }
        shell = "bash --norc --noprofile"
        size = ["-x", str(columns), "-y", "50"]
        subprocess.run(
            ["tmux", "new-session", "-d", "-s", self.name, *size, shell], cwd=folder, env=env, check=True
        )
        self.keys(f"export PATH={BIN}:$PATH PS1='$ '; clear", "Enter")
        time.sleep(1)

    def keys(self, *keys: str) -> None:
        subprocess.run(["tmux", "send-keys", "-t", self.name, *keys], check=True)

    def screen(self) -> str:
        shown = subprocess.run(
            ["tmux", "capture-pane", "-p", "-t", self.name], capture_output=True, text=True, check=True
        )
        return shown.stdout.rstrip()

    def run(self, command: str, during: float = 0.0) -> tuple[str, str]:
        """The screen `during` seconds after the start, and when the command has ended."""
        self.keys("clear", "Enter")
        time.sleep(0.3)
        self.keys(command, "Enter")
        time.sleep(during)
        half = self.screen()
        for _ in range(300):
            time.sleep(0.2)
            if self.screen().endswith("\n$"):
                break
        return half, self.screen().removesuffix("\n$")

    def close(self) -> None:
        subprocess.run(["tmux", "kill-session", "-t", self.name], check=False)


def block(text: str) -> str:
    return "\n".join(["```text", *(line.rstrip() for line in text.splitlines()), "```", ""])


def main() -> None:
    parts = [HEAD]
    with tempfile.TemporaryDirectory() as scratch:
        for columns in (80, 140):
            folder = project(Path(scratch) / str(columns))
            terminal = Terminal(folder, columns)
            try:
                terminal.run("doit base:smollm2")
                half, done = terminal.run("doit model:phase8", during=1.3)
                parts += [f"## {columns} columns", "", "While it builds:", "", block(half)]
                parts += ["When it is done:", "", block(done), block(terminal.run("doit status")[1])]
                if columns == 80:
                    half, done = terminal.run("doit eval:phase8_5bit", during=8)
                    parts += ["While it measures, and when it is done:", "", block(half), block(done)]
                    parts += ["When a name is wrong:", "", block(terminal.run("doit why phase8_9bit")[1])]
                text = (folder / "artifacts.toml").read_text()
                five = "[variant.5bit]\nbits = 5\ngroup_size = 64"
                (folder / "artifacts.toml").write_text(text.replace(five, five.replace("64", "32")))
                parts += ["After the group size of the 5-bit variant was changed:", ""]
                for command in ("doit status", "doit why phase8_5bit", "doit plan"):
                    parts.append(block(terminal.run(command)[1]))
            finally:
                terminal.close()
        environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "NO_COLOR": "1"}
        piped = [f"$ NO_COLOR=1 {command} 2>&1 | cat\n" + subprocess.run(
            command, shell=True, cwd=folder, env=environment, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, check=False,
        ).stdout for command in ("doit model:phase8_5bit", "doit status")]  # fmt: skip
        parts += ["## In a pipe, without colour", "", *(block(text) for text in piped)]
    (ROOT / "docs/terminal.md").write_text("\n".join(parts))


if __name__ == "__main__":
    main()
