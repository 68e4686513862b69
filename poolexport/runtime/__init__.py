"""Opening models with onnxruntime; no torch in here."""

from poolexport.runtime.session import Source, session

__all__ = ["Source", "session"]
