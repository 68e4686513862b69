"""Opening models with onnxruntime; no torch in here."""

from poolexport.runtime.functions import Source
from poolexport.runtime.kernels import kernel_library, kernel_operators, register_kernels
from poolexport.runtime.opening import plain_session, session
from poolexport.runtime.variants import VARIANTS, Variant

__all__ = [
    "VARIANTS",
    "Source",
    "Variant",
    "kernel_library",
    "kernel_operators",
    "plain_session",
    "register_kernels",
    "session",
]
