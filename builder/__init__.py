"""A declarative build system for model artifacts. See docs/design.md."""

__version__ = "0.1.0"
