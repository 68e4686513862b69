"""Opening models with onnxruntime; no torch in here."""

from poolexport.runtime.opening import Source, session

__all__ = ["Source", "session"]
