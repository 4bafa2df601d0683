"""Bytes in words."""

from __future__ import annotations


def size_text(nbytes: float) -> str:
    """In the units of disk makers, three digits: 92.6 MB."""
    value, unit = float(nbytes), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(value) < 999.5 or unit == "TB":
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "B" or value >= 99.95 else f"{value:.1f} {unit}"
