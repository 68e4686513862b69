"""Export any trained CNN with any pooling layer to ONNX, prove that the numbers are the same, and run it.

>>> import poolexport
>>> "softpool" in poolexport.methods()
True
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from poolexport import nn as nn
    from poolexport.adoption.adopting import Adopted as Adopted
    from poolexport.adoption.adopting import adopt as adopt
    from poolexport.adoption.swapping import swap as swap
    from poolexport.api import audit as audit
    from poolexport.api import export as export
    from poolexport.api import verify as verify
    from poolexport.bundle import Bundle as Bundle
    from poolexport.catalog import methods as methods
    from poolexport.errors import ExportError as ExportError
    from poolexport.errors import FrozenAxisError as FrozenAxisError
    from poolexport.errors import InputError as InputError
    from poolexport.errors import MissingKernelsError as MissingKernelsError
    from poolexport.errors import ParityError as ParityError
    from poolexport.errors import PoolExportError as PoolExportError
    from poolexport.errors import RandomnessError as RandomnessError
    from poolexport.pipeline.audit import Audit as Audit
    from poolexport.pipeline.verify import Verdict as Verdict
    from poolexport.runtime import kernel_library as kernel_library
    from poolexport.runtime import register_kernels as register_kernels
    from poolexport.runtime import session as session
    from poolexport.translate import translation_table as translation_table

__version__ = "0.1.0"

#: Where each public name lives. It is loaded on first use, so that opening a session does not import torch.
_HOMES = {
    "Adopted": "poolexport.adoption.adopting",
    "Audit": "poolexport.pipeline.audit",
    "Bundle": "poolexport.bundle",
    "ExportError": "poolexport.errors",
    "FrozenAxisError": "poolexport.errors",
    "InputError": "poolexport.errors",
    "MissingKernelsError": "poolexport.errors",
    "ParityError": "poolexport.errors",
    "PoolExportError": "poolexport.errors",
    "RandomnessError": "poolexport.errors",
    "Verdict": "poolexport.pipeline.verify",
    "adopt": "poolexport.adoption.adopting",
    "audit": "poolexport.api",
    "export": "poolexport.api",
    "kernel_library": "poolexport.runtime",
    "methods": "poolexport.catalog",
    "nn": "poolexport.nn",
    "register_kernels": "poolexport.runtime",
    "session": "poolexport.runtime",
    "swap": "poolexport.adoption.swapping",
    "translation_table": "poolexport.translate",
    "verify": "poolexport.api",
}

__all__ = sorted(_HOMES)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'poolexport' has no attribute {name!r}")
    home = importlib.import_module(_HOMES[name])
    value = home if name == "nn" else getattr(home, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
