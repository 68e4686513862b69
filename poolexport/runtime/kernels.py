"""Native kernels: where their library is, which operators of a model it serves, and how a session gets them.

Operators of the domain ``poolexport`` carry bodies of standard operators. Where the library is registered, onnxruntime
calls its kernels instead; nothing in the file changes.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
from pathlib import Path

import onnxruntime as ort

from poolexport.errors import InputError, MissingKernelsError, first_line
from poolexport.runtime.functions import Source, functions

LIBRARY = Path("kernels/libpoolexport_kernels.so")
#: Path of another build of the library, or "off".
VARIABLE = "POOLEXPORT_KERNELS"
DOMAIN = "poolexport"
#: Where session options remember what they were given: onnxruntime takes operators of a domain once.
REGISTERED = "poolexport.kernels"
ALL = "*"


def kernel_library() -> Path | None:
    """The library of native kernels; None where it was not built, or is turned off.

    Programs in C++ and C# register it under this path, as any library of operators.

    Example:
        >>> import poolexport
        >>> path = poolexport.kernel_library()
        >>> path is None or path.name
        'libpoolexport_kernels.so'
    """
    chosen = os.environ.get(VARIABLE, "")
    if chosen:
        return None if chosen == "off" else Path(chosen).absolute()
    spec = importlib.util.find_spec("poolexport_ops")
    folders = spec.submodule_search_locations if spec is not None else None
    found = [Path(folder) / LIBRARY for folder in folders or ()]
    return next((path for path in found if path.is_file()), None)


def kernel_operators() -> tuple[str, ...]:
    """Names of the operators that have a native kernel; none where there is no library."""
    path = kernel_library()
    if path is None:
        return ()
    return tuple(_loaded(path).poolexport_operators().decode().split(","))


def register_kernels(options: ort.SessionOptions, model: Source | None = None) -> tuple[str, ...]:
    """Let sessions opened with these options run native kernels.

    Args:
        options: session options; the library is registered with them.
        model: a bundle, an .onnx file or the bytes of one. Only the operators that it holds are registered, which takes
            less time for each session. All of them by default.

    Returns:
        The operators of the model that run natively: names of its functions.

    Raises:
        MissingKernelsError: the library was not built, cannot be loaded by this onnxruntime, or the options were given
            the kernels of another model before.
        InputError: there is no such model.

    Example:
        >>> import onnxruntime, poolexport
        >>> options = onnxruntime.SessionOptions()
        >>> if poolexport.kernel_library():
        ...     _ = poolexport.register_kernels(options)
    """
    if not isinstance(options, ort.SessionOptions):
        raise InputError(f"kernels are registered with onnxruntime.SessionOptions, not with {type(options).__name__}")
    path = kernel_library()
    if path is None:
        off = f"{VARIABLE} turns them off; unset it"
        never = "they were not compiled at installation; install a C++ compiler and then poolexport anew"
        raise MissingKernelsError(
            f"there are no native kernels: {off if os.environ.get(VARIABLE) else never}, or go without them: the same "
            "file runs on standard operators"
        )
    library = _loaded(path)
    names = tuple(kernel_operators()) if model is None else native(model)
    already = registered(options)
    if already is not None:
        missing = sorted(set(names) - already) if already else []
        if missing:
            raise MissingKernelsError(
                f"these session options hold the kernels of another model, and not {', '.join(missing)}; make new "
                "options for each model, or register all kernels with them first, without naming a model"
            )
        return names
    if model is not None:
        if not names:
            return ()
        library.poolexport_choose(",".join(names).encode())
    try:
        options.register_custom_ops_library(os.fspath(path))
    except Exception as error:
        raise MissingKernelsError(f"onnxruntime {ort.__version__} cannot load {path}: {first_line(error)}") from error
    options.add_session_config_entry(REGISTERED, ALL if model is None else ",".join(names))
    return names


def registered(options: ort.SessionOptions) -> frozenset[str] | None:
    """Names of the functions whose kernels are registered with session options; None where none are.

    Empty where all operators are registered.
    """
    try:
        names = options.get_session_config_entry(REGISTERED)
    except RuntimeError:
        return None
    return frozenset() if names == ALL else frozenset(names.split(","))


def native(model: Source) -> tuple[str, ...]:
    """Names of the functions of a model that have a native kernel."""
    known = set(kernel_operators())
    return tuple(name for domain, name in functions(model) if domain == DOMAIN and stem(name) in known)


def stem(name: str) -> str:
    """The operator that a function is a body of: SoftmaxPool for SoftmaxPool_2."""
    head, _, number = name.rpartition("_")
    return head if head and number.isascii() and number.isdigit() else name


def _loaded(path: Path) -> ctypes.CDLL:
    try:
        return _library(os.fspath(path))
    except OSError as error:
        raise MissingKernelsError(f"the native kernels in {path} cannot be loaded: {error}") from error
    except AttributeError as error:
        raise MissingKernelsError(
            f"{path} is no library of poolexport's kernels: {error}; see {VARIABLE}, or install poolexport anew"
        ) from error


@functools.cache
def _library(path: str) -> ctypes.CDLL:
    library = ctypes.CDLL(path)
    library.poolexport_choose.argtypes = [ctypes.c_char_p]
    library.poolexport_choose.restype = None
    library.poolexport_operators.argtypes = []
    library.poolexport_operators.restype = ctypes.c_char_p
    return library
