"""The layers of every method, by class name: ``poolexport.nn.SoftPool2d(2)``."""

from __future__ import annotations

from torch import nn

from poolexport import catalog


def __getattr__(name: str) -> type[nn.Module]:
    try:
        return catalog.layers()[name]
    except KeyError:
        raise AttributeError(f"poolexport.nn has no layer {name!r}; it has {', '.join(__dir__())}") from None


def __dir__() -> list[str]:
    return sorted(catalog.layers())
