"""Opening models with onnxruntime, and ways of running them with others; no torch in here."""

from poolexport.runtime.named import runtimes
from poolexport.runtime.opening import Source, session
from poolexport.runtime.variants import VARIANTS, Variant
from poolexport.runtime.ways import Form, LacksError, Running, Way

__all__ = ["VARIANTS", "Form", "LacksError", "Running", "Source", "Variant", "Way", "runtimes", "session"]
