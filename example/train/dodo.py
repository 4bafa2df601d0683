"""The tasks of this project, made from artifacts.toml. Everything happens in the package `builder`."""

from builder.tasks import load

DOIT_CONFIG, task_artifacts = load("artifacts.toml")
