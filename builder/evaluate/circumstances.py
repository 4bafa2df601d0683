"""When, where and with what a figure was measured. These may change a figure, so each result records them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from builder.project.toolchain import machine, now, version_of


@dataclass(frozen=True)
class Told:
    """The circumstances of several results as text: the times, the machines, and the versions."""

    when: str
    where: str
    how: str


def told(made: Iterable[Mapping[str, str]]) -> Told | None:
    """The circumstances of the results of a target, from their `made`. None when there are no results."""
    known = [each for each in made if each]
    if not known:
        return None
    times = sorted(each["at"] for each in known if "at" in each)
    when = " to ".join(dict.fromkeys((times[0], times[-1]))) if times else ""
    where = dict.fromkeys(f"{each.get('machine', '')} {each.get('device', '')}".strip() for each in known)
    names = {"mlx": "mlx", "mlx_lm": "mlx-lm", "blas": "blas", "precision": "precision"}
    names = {"llama_cpp": "the llama.cpp of xllamacpp", **names}
    how = dict.fromkeys(f"{name} {each[key]}" for key, name in names.items() for each in known if key in each)
    longest = [place for place in where if not any(place != o and o.startswith(place) for o in where)]
    return Told(when, ", ".join(longest), ", ".join(how))


def circumstances() -> dict[str, str]:
    """The time (RFC 3339), this machine, and the installed versions of mlx and mlx-lm."""
    return {
        "at": now(),
        "machine": machine(),
        "mlx": version_of("mlx"),
        "mlx_lm": version_of("mlx-lm"),
    }


def device() -> str:
    """The device that mlx computes on: "cpu", or "gpu" with the name that the driver gives."""
    import mlx.core as mx

    kind = mx.default_device().type.name
    if kind == "cpu":
        return kind
    name = mx.device_info().get("device_name", "")
    return f"{kind} {name}".strip()
