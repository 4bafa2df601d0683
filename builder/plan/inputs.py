"""What is in the keys of a target, in words. Its manifest says it, so that `why` can name what changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from builder.keys import make_key
from builder.sources.facts import AdapterFacts
from builder.spec.quantizers import METHOD_SETTINGS

# What a manifest says as settings (builder.plan.changes.settings_of), or what names a block.
SETTINGS = frozenset(
    {"block", "dtype", "dtype_asked", "common", "recipe", "overrides", "bits", "group_size", "method"}
)
SETTINGS |= frozenset().union(
    *METHOD_SETTINGS.values(), {"samples", "sequence_length", "goal", "experts", "criterion"}
)


def in_words(keyed: Sequence[Mapping[str, object]]) -> dict[str, str]:
    """The named parts of several keys as text. Digests of many values become one digest."""
    values: dict[str, list[object]] = {}
    for parts in keyed:
        for name, value in parts.items():
            if name not in SETTINGS and value is not None:
                values.setdefault(name, []).append(value)
    words = {}
    for name, found in values.items():
        alike = all(value == found[0] for value in found)
        words[name] = str(found[0]) if alike else make_key("several/1", found)
    return words


def adapter_in_words(adapter: AdapterFacts | None) -> dict[str, str]:
    return {} if adapter is None else {"adapter_digest": str(adapter.digest)}
