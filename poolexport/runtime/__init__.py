"""Opening models with onnxruntime; no torch in here."""

from poolexport.runtime.opening import Source, session
from poolexport.runtime.variants import VARIANTS, Variant

__all__ = ["VARIANTS", "Source", "Variant", "session"]
