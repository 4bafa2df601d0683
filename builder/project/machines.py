"""Whether a run has other machines: the scheduler that `--cluster` names."""

from __future__ import annotations

import os

CLUSTER = "BUILDER_CLUSTER"  # set by `--cluster`


def cluster_address() -> str:
    """The address of the scheduler. Empty where this machine works alone."""
    return os.environ.get(CLUSTER, "")
