"""Operators: the words from which pooling methods are made.

One operator a file, torch form and ONNX form side by side; this package finds them by walking its own folder.

>>> from poolexport_ops import operators
>>> sorted(operators())[0]
'AdaptiveAveragePool'
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from types import MappingProxyType

from poolexport_ops._operator import DOMAIN, VERSION, Operator
from poolexport_ops._window import Window, per_axis, require_rank

__all__ = ["DOMAIN", "VERSION", "Operator", "Window", "operators", "per_axis", "require_rank"]


@cache
def operators() -> MappingProxyType[str, Operator]:
    """Every operator of the domain by name."""
    found: dict[str, Operator] = {}
    for module in pkgutil.iter_modules(__path__):
        if module.name.startswith("_"):
            continue
        operator = getattr(importlib.import_module(f"{__name__}.{module.name}"), module.name)
        found[operator.name] = operator
    return MappingProxyType(found)
