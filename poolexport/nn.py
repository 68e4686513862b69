"""The layers of every method, by class name: ``poolexport.nn.SoftPool2d(2)``."""

from __future__ import annotations

from typing import Any

from poolexport import catalog


def __getattr__(name: str) -> Any:
    if name == "__all__":
        return __dir__()
    try:
        return catalog.layers()[name]
    except KeyError:
        raise AttributeError(f"poolexport.nn has no layer {name!r}; it has {', '.join(__dir__())}") from None


def __dir__() -> list[str]:
    return sorted(catalog.layers())
