"""Which modules of a model are its layers, and how to be called in place of a layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import mlx.nn as nn

# Is given the module, its own call, and the arguments of the call. Returns what the module returns.
OnCall = Callable[[nn.Module, Callable[..., Any], Any, Any], Any]


def listed_layers(module: nn.Module) -> Iterator[nn.Module]:
    """The modules in the outermost lists of a tree of modules. These are the layers of the model.

    Single embeddings and projections are not layers: models keep lists of these beside the layers.
    """
    for child in module.children().values():
        if isinstance(child, nn.Module):
            yield from listed_layers(child)
        elif isinstance(child, list):
            yield from (entry for entry in child if isinstance(entry, nn.Module) and entry.children())


@contextmanager
def intercepted(handlers: Iterable[tuple[nn.Module, Mapping[str, OnCall]]]) -> Iterator[None]:
    """Calls of methods of the modules go through their handlers, by name, until the block ends.

    Each module gets a subclass of its class, so that the code of a model that looks at classes sees no
    change.
    """
    wanted: list[tuple[nn.Module, Any, Mapping[str, OnCall]]] = [
        (module, type(module), methods) for module, methods in handlers
    ]
    try:
        for module, kind, methods in wanted:
            module.__class__ = type(
                kind.__name__, (kind,), {n: _calling(kind, n, methods[n]) for n in methods}
            )
        yield
    finally:
        for module, kind, _ in wanted:
            module.__class__ = kind


def _calling(kind: Any, name: str, on_call: OnCall) -> Any:
    method = getattr(kind, name)

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return on_call(self, lambda *a, **k: method(self, *a, **k), args, kwargs)

    return call
