"""mlx_lm for a pass over weights: tokenizers and training are imported on first use, not before.

`import mlx_lm` imports transformers and huggingface_hub, which takes a second and 100 MB, and a pass over
weights uses neither; mlx_lm.tuner imports a trainer, with optimizers and a console. While mlx_lm is imported
here, names that it takes from them are stand-ins that become the real ones on first use (as a lazy import
does; PEP 810). Whoever imports those modules afterwards gets the modules themselves.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

DEFERRED = ("transformers", "huggingface_hub", "mlx_lm.tokenizer_utils", "mlx_lm.tuner.trainer")
# What the engine uses of mlx_lm; architectures (mlx_lm.models.*) import none of DEFERRED.
_USED = ("mlx_lm.utils", "mlx_lm.convert", "mlx_lm.tuner.dora", "mlx_lm.tuner.lora")


def import_mlx_lm() -> None:
    """Import what the engine uses of mlx_lm. Costs about 0.2 s the first time, nothing after that."""
    if "mlx_lm" in sys.modules:
        return
    before = set(sys.modules)
    try:
        with _deferred():
            for name in _USED:
                importlib.import_module(name)
    except Exception:  # an mlx_lm that uses more of them while it is imported: as everybody imports it
        for name in set(sys.modules) - before:
            if name.partition(".")[0] == "mlx_lm":
                del sys.modules[name]
        for name in _USED:
            importlib.import_module(name)


@contextmanager
def _deferred() -> Iterator[None]:
    """Stand-ins in sys.modules for what is not imported yet; gone afterwards."""
    stands = {name: _StandIn(name) for name in DEFERRED if name not in sys.modules}
    sys.modules.update(stands)
    try:
        yield
    finally:
        for name, module in stands.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]


class _StandIn(ModuleType):
    """A module all of whose names are forwarders."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Forward(name, (), {"__module__": self.__name__})


class _Forward(type):
    """A class (annotations and `isinstance` want one) that does what the real object of its name does."""

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
