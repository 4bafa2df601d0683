"""Evaluation results in the hub's own format: a file in `.eval_results/` for each benchmark. Pure.

Format: https://huggingface.co/docs/hub/eval-results
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from builder.evaluate.results import Result, figure_of, interval_text
from builder.publish.bundle import File, of_bytes
from builder.spec.destinations import Benchmark
from builder.spec.types import Metric

FOLDER = ".eval_results/"


def entries(benchmarks: Sequence[Benchmark], results: Mapping[str, Result]) -> tuple[list[File], list[str]]:
    """A file for each benchmark, and a line for each figure that was not measured."""
    import yaml

    found: dict[str, list[dict[str, Any]]] = {}
    lacking = []
    for each in benchmarks:
        metric = Metric(each.suite, each.figure)
        figure = figure_of(results, metric)
        if figure is None:
            lacking.append(f"{metric} is not measured, so {each.dataset} gets no result")
            continue
        entry: dict[str, Any] = {"dataset": {"id": each.dataset, "task_id": each.task}}
        entry["value"] = float(f"{figure.value:.6g}")
        if at := results[each.suite].made.get("at"):
            entry["date"] = at
        interval = interval_text(figure)
        counted = f"{metric} by modelkiln, n = {figure.counted}"
        entry["notes"] = f"{counted}, 95 % interval {interval}" if interval else counted
        found.setdefault(each.dataset, []).append(entry)
    files = [
        of_bytes(
            f"{FOLDER}{dataset.replace('/', '-')}.yaml",
            yaml.safe_dump(entries, sort_keys=False, width=1000).encode(),
        )
        for dataset, entries in found.items()
    ]
    return files, lacking
