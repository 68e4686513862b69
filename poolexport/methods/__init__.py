"""One pooling method a file; a new file is a new method.

The package is callable: ``poolexport.methods()`` returns every method by name, whether or not this folder was imported
under the same name before.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from functools import cache
from types import MappingProxyType, ModuleType

from poolexport.method import Method


@cache
def find() -> MappingProxyType[str, Method]:
    """Every pooling method by name: the folder is the registry."""
    names = [module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")]
    return MappingProxyType({name: importlib.import_module(f"{__name__}.{name}").METHOD for name in names})


class _Methods(ModuleType):
    def __call__(self) -> MappingProxyType[str, Method]:
        return find()


sys.modules[__name__].__class__ = _Methods
