"""Opening models with onnxruntime, and ways of running them with others; no torch in here."""

from poolexport.runtime.functions import Source
from poolexport.runtime.kernels import kernel_library, kernel_operators, register_kernels
from poolexport.runtime.named import runtimes
from poolexport.runtime.opening import plain_session, session
from poolexport.runtime.variants import VARIANTS, Variant
from poolexport.runtime.ways import Form, LacksError, Running, Way

__all__ = [
    "VARIANTS",
    "Form",
    "LacksError",
    "Running",
    "Source",
    "Variant",
    "Way",
    "kernel_library",
    "kernel_operators",
    "plain_session",
    "register_kernels",
    "runtimes",
    "session",
]
