"""Packages that only the demonstration needs."""

from __future__ import annotations

import importlib
from types import ModuleType

from poolexport.errors import MissingExtraError

#: Name to install, by the package that is imported.
PACKAGES = {"sklearn": "scikit-learn", "matplotlib": "matplotlib", "jinja2": "jinja2"}


def require(module: str, purpose: str) -> ModuleType:
    """An optional module.

    Raises:
        MissingExtraError: its package is not installed; the message says what for and how to get it.

    Example:
        >>> require("jinja2", "writing the page").__name__
        'jinja2'
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(PACKAGES[module.partition(".")[0]], "demo", purpose) from error
