"""Whose code a file holds, and how a place in it is written."""

from __future__ import annotations

import importlib.util
import os
import sysconfig
from functools import cache
from pathlib import Path

#: Packages that carry out what the user's code asks for.
CARRIERS = tuple(
    str(folder) + os.sep
    for name in ("torch", "numpy", "sympy", "mpmath", "onnx_ir", "onnxscript", "poolexport", "poolexport_ops")
    if (spec := importlib.util.find_spec(name)) is not None and spec.origin
    for folder in {Path(spec.origin).parent, Path(spec.origin).resolve().parent}
)
STANDARD = tuple(
    str(folder) + os.sep
    for folder in {Path(sysconfig.get_path("stdlib")), Path(sysconfig.get_path("stdlib")).resolve()}
)
#: Names of files that are none: code made from strings.
WRITTEN = ("<string>", "<frozen ", "<__array", "<eval_with_key>")
INSTALLED = ("site-packages", "dist-packages")


@cache
def is_users(file: str) -> bool:
    """Whether a file is neither of torch, numpy or poolexport nor of Python itself, nor code that one of them wrote."""
    if file.startswith(CARRIERS) or file.startswith(WRITTEN):
        return False
    return not file.startswith(STANDARD) or any(f"{os.sep}{name}{os.sep}" in file for name in INSTALLED)


def place(file: str, line: int) -> str:
    """``file:line``, the file relative to the current folder where it is below it."""
    path = Path(file)
    if path.is_absolute() and path.is_relative_to(Path.cwd()):
        path = path.relative_to(Path.cwd())
    return f"{path}:{line}"
