"""What a remote costs: bytes and seconds of pushing and pulling one built target, beside `cp` with fsync.

    python bench/remote.py TARGET [--url s3://BUCKET/PREFIX --endpoint URL] [--runs 3] [--json FILE]

Works in the project of this folder. Without a url: a folder. Each run pushes to a new prefix and pulls into a
new store. Figures are medians.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from builder.build.sharing import Opened
from builder.console.events import silent
from builder.plan.types import TargetPlan
from builder.project.project import Project
from builder.project.remotes import bundle_of, wanted_of
from builder.remote.connect import connect
from builder.remote.contents import look
from builder.remote.offer import Rules, offer_of
from builder.remote.pull import plan_pull, pull
from builder.remote.push import Bundle, push
from builder.remote.setup import init
from builder.spec.sharing import Remote
from builder.store import blobs
from builder.store.format import open_store


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("target")
    parser.add_argument("--url")
    parser.add_argument("--endpoint")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    project = Project.load(Path("artifacts.toml"))
    plan = project.plan.targets[asked.target]
    bundle = bundle_of(project, plan) if isinstance(plan, TargetPlan) else None
    if bundle is None or not isinstance(plan, TargetPlan):
        sys.exit(f"{asked.target} is not built")
    size = sum(blob.size for blob in bundle.blobs)
    found: dict[str, list[float]] = {"cp and fsync": [], "push": [], "pull": []}
    for run in range(asked.runs):
        with tempfile.TemporaryDirectory(dir=project.store.tmp.parent) as scratch:
            folder = Path(scratch)
            found["cp and fsync"].append(timed(copied, project, bundle, folder / "cp"))
            remote = Remote("bench", str(folder / "remote"), folder / "remote")
            if asked.url:
                url = f"{asked.url}/{os.getpid()}-{run}"
                remote = Remote("bench", url, endpoint=asked.endpoint)
            transport = connect(remote)
            init(transport)
            found["push"].append(timed(push, project.store, transport, [bundle], None, silent))
            there = Opened(remote, look(transport), Rules())
            found["pull"].append(timed(pulled, project, plan, there, folder / "store"))
    print(f"{asked.target}: {size / 1e6:.1f} MB in {len(bundle.blobs)} blobs")
    for what, seconds in found.items():
        middle = statistics.median(seconds)
        print(f"{what:13} {middle:6.2f} s {size / 1e6 / middle:6.0f} MB/s")
    if asked.json:
        asked.json.write_text(json.dumps({"bytes": size, "seconds": found}, indent=2))


def timed(work: Callable[..., object], *arguments: object) -> float:
    start = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - start


def copied(project: Project, bundle: Bundle, folder: Path) -> None:
    folder.mkdir()
    for blob in bundle.blobs:
        file = folder / blob.digest
        with file.open("wb") as out:
            out.write(blobs.path(project.store, blob.digest).read_bytes())
            out.flush()
            os.fsync(out.fileno())


def pulled(project: Project, plan: TargetPlan, there: Opened, folder: Path) -> None:
    offer = offer_of(there.contents, wanted_of(project, [plan]), there.rules, lambda _: False)
    made = plan_pull(offer, lambda _: False, lambda _: False)
    pull(open_store(folder), there.contents.transport, made, silent)


if __name__ == "__main__":
    main()
