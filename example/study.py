"""The tasks of the study, made from study.toml."""

from builder.tasks import load

DOIT_CONFIG, task_artifacts = load("study.toml")
