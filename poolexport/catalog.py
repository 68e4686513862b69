"""Every method there is: the folder ``poolexport/methods`` is the registry."""

from __future__ import annotations

from functools import cache
from types import MappingProxyType

from torch import nn

from poolexport.method import Method
from poolexport.methods import find


def methods() -> MappingProxyType[str, Method]:
    """Every pooling method by name.

    >>> import poolexport
    >>> poolexport.methods()["softpool"].layer(2).__name__
    'SoftPool2d'
    """
    return find()


@cache
def layers() -> MappingProxyType[str, type[nn.Module]]:
    """Every layer of every method by class name."""
    return MappingProxyType({layer.__name__: layer for m in methods().values() for layer in (*m.layers, *m.variants)})


def method_of(module: nn.Module) -> Method | None:
    """The method whose layer ``module`` is, or None."""
    for method in methods().values():
        if isinstance(module, (*method.layers, *method.variants)):
            return method
    return None
