"""What several workers gain: 1, 2 and 4 workers as processes on this machine, and a calculation for 1 to 64.

    python bench/cluster.py [--workers 1 2 4] [--rows 24] [--json FILE]      measures, with the example
    python bench/cluster.py --calculate [--block 2.2] [--measure 94] [--overhead 0.7]

Each worker is a checkout with a store of its own. All of them publish into one folder. The base is imported
and fingerprinted before the clock starts. The workers share the cores of this machine, so what they gain here
is what one worker leaves idle.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.machines import WORKERS, Shape, limit, shape, simulate  # noqa: E402

TARGETS = ("phase8_4bit", "phase8_5bit", "phase8_6bit", "phase8_8bit")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--rows", type=int, default=24)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--calculate", action="store_true")
    parser.add_argument("--block", type=float, default=1.74, help="seconds of a pass for each GB of the base")
    parser.add_argument("--measure", type=float, default=94.0, help="seconds of one evaluation at 30B")
    parser.add_argument("--overhead", type=float, default=0.2, help="seconds of a job that has nothing to do")
    parser.add_argument("--suites", type=int, default=4)
    asked = parser.parse_args()
    if asked.calculate:
        calculate(asked.block, asked.measure, asked.overhead, asked.suites)
        return
    rows = []
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print("workers  blocks s  pull s  suites s  jobs  s for a job with nothing to do")
    for count in asked.workers:
        rows.append(row := measured(count, asked.rows))
        print(
            f"{row['workers']:7}  {row['blocks']:8.1f}  {row['pull']:6.1f}  {row['suites']:8.1f}"
            f"  {row['jobs']:4}  {row['idle']:.2f}",
            flush=True,
        )
    if asked.json:
        asked.json.write_text(json.dumps(rows, indent=1))


# -- measured ------------------------------------------------------------------------------------------------


def measured(workers: int, rows: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as scratch:
        folder = Path(scratch)
        places = [project_in(folder / name, rows) for name in ("client", *(f"w{n}" for n in range(workers)))]
        started: list[subprocess.Popen[bytes]] = []
        try:
            address = scheduler(folder, started)
            for place in places[1:]:
                command = [
                    sys.executable,
                    "-m",
                    "builder.commands.main",
                    "worker",
                    address,
                    "--name",
                    place.name,
                ]
                started.append(quiet(command, place))
            return timed_jobs(places[0], address, workers)
        finally:
            for process in reversed(started):
                process.kill()
                process.wait()


def timed_jobs(place: Path, address: str, workers: int) -> dict[str, Any]:
    from builder.build.prepare import prepare_target
    from builder.build.sharing import fetch, look_again
    from builder.cluster import connection
    from builder.cluster.jobs import Job
    from builder.cluster.running import run_jobs
    from builder.cluster.spreading import build_jobs, evaluation_jobs
    from builder.cluster.worker import work
    from builder.console.events import silent
    from builder.project.project import Project
    from builder.remote.connect import connect
    from builder.remote.setup import init

    project = Project.load(place / "artifacts.toml")
    init(connect(project.spec.remotes["team"]))
    plans = [prepare_target(project, project.spec.target(name), silent) for name in TARGETS]
    cluster = connection.connect(address, silent)
    cluster.client.wait_for_workers(workers)
    brief = {
        "declaration": project.spec.file.read_text(),
        "session": "none",
        "remote": "team",
        "versions": dict(cluster.versions),
    }
    nothing = Job("blocks", "nothing", TARGETS[:1]).as_data()
    cluster.client.run(work, brief, nothing)  # imports and fingerprints the base, loads mlx
    found: dict[str, Any] = {"workers": workers}
    jobs = build_jobs(project, plans, cluster.width)
    for name in ("blocks", "idle"):  # the second time there is nothing to do
        time.sleep(1)  # the scheduler forgets what it was asked before
        before = time.perf_counter()
        failed = run_jobs(cluster, brief, jobs, silent).failed
        found[name] = time.perf_counter() - before
        assert not failed, failed
    found["jobs"] = len(jobs)
    found["idle"] *= min(workers, len(jobs)) / len(jobs)
    look_again()
    before = time.perf_counter()
    fetch(project, plans, silent)
    found["pull"] = time.perf_counter() - before
    suites = evaluation_jobs(project, plans, silent)
    before = time.perf_counter()
    failed = run_jobs(cluster, brief, suites, silent).failed
    found["suites"] = time.perf_counter() - before
    assert not failed, failed
    cluster.client.close()
    return found


def project_in(folder: Path, rows: int) -> Path:
    """The example with one scored suite of a few rows, and a folder as its remote."""
    folder.mkdir()
    shutil.copytree(ROOT / "example" / "adapters", folder / "example" / "adapters")
    data = folder / "example" / "data" / "test.jsonl"
    data.parent.mkdir()
    lines = (ROOT / "example" / "data" / "test.jsonl").read_text().splitlines(keepends=True)
    data.write_text("".join(lines[:rows]))
    text = (ROOT / "artifacts.toml").read_text()
    text = text.replace('suites = ["routing", "calls", "fidelity"]', 'suites = ["routing"]')
    text = text.replace('"fidelity.kl" = "<= 0.1"\n', "")
    (folder / "artifacts.toml").write_text(f'{text}\n[remote.team]\nurl = "../remote"\n')
    return folder


def scheduler(folder: Path, started: list[subprocess.Popen[bytes]]) -> str:
    file = folder / "scheduler.json"
    options = ("--host", "127.0.0.1", "--port", "0", "--dashboard-address", "127.0.0.1:0")
    command = [sys.executable, "-m", "dask", "scheduler", *options, "--scheduler-file", str(file)]
    started.append(quiet(command, folder))
    while not file.exists() or not file.read_text().endswith("}"):
        if started[-1].poll() is not None:
            sys.exit((folder / "log").read_text())
        time.sleep(0.1)
    return str(json.loads(file.read_text())["address"])


def quiet(command: list[str], folder: Path) -> subprocess.Popen[bytes]:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    log = (folder / "log").open("wb")
    return subprocess.Popen(command, cwd=folder, env=env, stdout=log, stderr=subprocess.STDOUT)


# -- calculated ----------------------------------------------------------------------------------------------


def calculate(block: float, measure: float, overhead: float, suites: int) -> None:
    """block: seconds of a pass with four variants for each GB. measure: of one evaluation of the 30B."""
    models = (shape("30B", 30.5e9, 48, measure), shape("480B", 480e9, 62, measure * 480 / 30.5))
    print(
        f"{'seconds, by workers':35}"
        + "".join(f"{count:>9}" for count in WORKERS)
        + "  store is the limit from"
    )
    for model in models:
        for line, speed in (("1 Gbit/s", 125e6), ("10 Gbit/s", 1.25e9)):
            for what, tasks in (
                ("blocks of 4 variants", model.blocks(block, 2 * max(WORKERS))),
                (f"{4 * suites} evaluations", model.suites(suites)),
            ):
                times = [simulate(tasks, count, speed, overhead) for count in WORKERS]
                at = limit(tasks, speed, overhead)
                print(
                    f"{model.name:4} {line:9} {what:20}"
                    + "".join(f"{each:9.0f}" for each in times)
                    + f"  {f'{at} workers' if at else '-'}"
                )
        print(pull(model))


def pull(model: Shape) -> str:
    """What the one who asks waits for afterwards: all variants come to his store."""
    whole = sum(model.variants)
    return (
        f"{model.name}: all variants have {whole / 1e9:.0f} GB: {whole / 125e6:.0f} or {whole / 1.25e9:.0f} s"
    )


if __name__ == "__main__":
    main()
