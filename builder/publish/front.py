"""The front matter of a card, as model hubs read it. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from builder.evaluate.results import Result, figures, interval_text
from builder.publish.evidence import Licence

# Names of licences that the hub knows. Any other name stands under `license_name`, with `license: other`.
_LICENCES = frozenset(
    (
        "apache-2.0", "mit", "openrail", "bigscience-openrail-m", "creativeml-openrail-m",
        "bigscience-bloom-rail-1.0", "bigcode-openrail-m", "afl-3.0", "artistic-2.0", "bsl-1.0", "bsd",
        "bsd-2-clause", "bsd-3-clause", "bsd-3-clause-clear", "c-uda", "cc", "cc0-1.0", "cc-by-2.0",
        "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-2.0",
        "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nd-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0",
        "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "cdla-sharing-1.0", "cdla-permissive-1.0",
        "cdla-permissive-2.0", "wtfpl", "ecl-2.0", "epl-1.0", "epl-2.0", "etalab-2.0", "eupl-1.1",
        "eupl-1.2", "agpl-3.0", "gfdl", "gpl", "gpl-2.0", "gpl-3.0", "lgpl", "lgpl-2.1", "lgpl-3.0", "isc",
        "h-research", "lppl-1.3c", "ms-pl", "apple-ascl", "apple-amlr", "mpl-2.0", "odc-by", "odbl",
        "openmdw-1.0", "openrail++", "osl-3.0", "postgresql", "ofl-1.1", "ncsa", "unlicense", "zlib",
        "pddl", "lgpl-lr", "deepfloyd-if-license", "fair-noncommercial-research-license", "llama2",
        "llama3", "llama3.1", "llama3.2", "llama3.3", "llama4", "gemma", "unknown", "other",
    )
)  # fmt: skip
_METRICS: Mapping[tuple[str, str], str] = {  # (kind of suite, figure) -> the hub's name of the metric
    ("choice", "accuracy"): "accuracy",
    ("choice", "greedy"): "accuracy",
    ("exact", "rate"): "exact_match",
    ("generate", "rate"): "accuracy",
    ("perplexity", "perplexity"): "perplexity",
    ("fidelity", "kl"): "kl_divergence",
    ("fidelity", "agreement"): "accuracy",
}


@dataclass(frozen=True)
class Facts:
    """What the front matter says. `library` is the program that loads the files. `bits` 0: not quantized."""

    name: str
    library: str
    base: str | None
    adapter: str | None
    bits: str
    licence: Licence | None
    datasets: tuple[str, ...]


def front_matter(facts: Facts, results: Mapping[str, Result]) -> str:
    """The YAML between the lines of dashes, with these lines."""
    import yaml

    data: dict[str, Any] = {}
    if facts.base is not None:
        data["base_model"] = [facts.base]
        if relation := _relation(facts):
            data["base_model_relation"] = relation
    data |= {"library_name": facts.library, "pipeline_tag": "text-generation"}
    data |= _licence(facts.licence)
    if facts.datasets:
        data["datasets"] = [*facts.datasets]
    data["tags"] = _tags(facts)
    if found := _evaluations(results):
        data["model-index"] = [{"name": facts.name, "results": found}]
    text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=1000, default_flow_style=False)
    return f"---\n{text}---"


def _relation(facts: Facts) -> str | None:
    if facts.bits:
        return "quantized"
    return "finetune" if facts.adapter else None


def _licence(found: Licence | None) -> dict[str, str]:
    if found is None:
        return {}
    name = found.name.lower()
    if name in _LICENCES and name != "other":
        return {"license": name}
    made = {"license": "other", "license_name": found.title or re.sub(r"[^a-z0-9.]+", "-", name).strip("-")}
    return made | ({"license_link": found.link} if found.link else {})


def _tags(facts: Facts) -> list[str]:
    bits = f"{facts.bits}-bit" if facts.bits.isdigit() else ""
    return [tag for tag in (facts.library, "modelkiln", "lora" if facts.adapter else "", bits) if tag]


def _evaluations(results: Mapping[str, Result]) -> list[dict[str, Any]]:
    """Evaluation results as the hub's model-index has them: one entry for each suite."""
    found = []
    for suite, result in results.items():
        metrics = [
            {
                "type": _METRICS.get((result.kind, name), name),
                "name": " ".join(filter(None, (f"{suite}.{name}", _interval(interval_text(figure))))),
                "value": float(f"{figure.value:.6g}"),
            }
            for name, figure in figures(result)
        ]
        dataset = {"type": suite, "name": f"{suite} (the author's own {result.kind} suite)"}
        found.append({"task": {"type": "text-generation"}, "dataset": dataset, "metrics": metrics})
    return found


def _interval(text: str) -> str:
    return f"(95 % interval {text})" if text else ""
