"""Every method there is: the folder ``poolexport/methods`` is the registry."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from types import MappingProxyType

from torch import nn

from poolexport import methods as _methods
from poolexport.method import Method


@cache
def methods() -> MappingProxyType[str, Method]:
    """Every pooling method by name.

    >>> from poolexport import methods
    >>> methods()["softpool"].layer(2).__name__
    'SoftPool2d'
    """
    found = {}
    for module in pkgutil.iter_modules(_methods.__path__):
        if not module.name.startswith("_"):
            found[module.name] = importlib.import_module(f"{_methods.__name__}.{module.name}").METHOD
    return MappingProxyType(found)


@cache
def layers() -> MappingProxyType[str, type[nn.Module]]:
    """Every layer of every method by class name."""
    return MappingProxyType({layer.__name__: layer for method in methods().values() for layer in method.layers})


def method_of(module: nn.Module) -> Method | None:
    """The method whose layer ``module`` is, or None."""
    for method in methods().values():
        if isinstance(module, method.layers):
            return method
    return None
