"""Imports mlx_lm for a pass over weights. Tokenizers and training are imported only on first use.

`import mlx_lm` imports transformers and huggingface_hub, which takes a second and 100 MB. A pass over weights
uses neither. mlx_lm.tuner imports a trainer, with optimizers and a console. While this module imports mlx_lm,
names from these modules are stand-ins. A stand-in becomes the real name on first use, as a lazy import does
(PEP 810). A later import of these modules gives the modules themselves.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

DEFERRED = (
    "transformers",
    "huggingface_hub",
    "mlx_lm.tokenizer_utils",
    "mlx_lm.tuner.trainer",
    "mlx_lm.cli_ui",
)
# The modules of mlx_lm that the engine uses. Architectures (mlx_lm.models.*) import none of DEFERRED.
_USED = ("mlx_lm.utils", "mlx_lm.convert", "mlx_lm.tuner.dora", "mlx_lm.tuner.lora")


def import_mlx_lm() -> None:
    """Imports the modules of mlx_lm that the engine uses. The first call takes about 0.2 s."""
    if "mlx_lm" in sys.modules:
        return
    before = set(sys.modules)
    try:
        with _deferred():
            for name in _USED:
                importlib.import_module(name)
    except Exception:  # this mlx_lm uses a stand-in while it is imported, so import it without stand-ins
        for name in set(sys.modules) - before:
            if name.partition(".")[0] == "mlx_lm":
                del sys.modules[name]
        for name in _USED:
            importlib.import_module(name)


@contextmanager
def _deferred() -> Iterator[None]:
    """Puts stand-ins into sys.modules for modules that are not imported yet. Removes them afterwards."""
    stands = {name: _StandIn(name) for name in DEFERRED if name not in sys.modules}
    sys.modules.update(stands)
    try:
        yield
    finally:
        for name, module in stands.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]


class _StandIn(ModuleType):
    """A module whose names are all forwarders."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Forward(name, (), {"__module__": self.__name__})


class _Forward(type):
    """A class that forwards to the real object of its name. Annotations and `isinstance` need a class."""

    @property
    def real(cls) -> Any:
        return getattr(importlib.import_module(cls.__module__), cls.__name__)

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        return cls.real(*args, **kwargs)

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, cls.real)

    def __subclasscheck__(cls, subclass: type) -> bool:
        return issubclass(subclass, cls.real)

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(cls.real, name)
