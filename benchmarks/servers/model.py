"""The model as every server of the comparison runs it: one thread a run, no turning while it waits.

Needs numpy and onnxruntime only, for it is imported in the environment of each server.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnxruntime as ort

#: Runs at a time that every server is allowed: processes or threads, whichever it offers.
RUNS = 2
#: Requests that servers which batch may put together, as Triton's own clients propose.
BATCH = 8


def opened(path: str) -> ort.InferenceSession:
    """A session as our own server opens it."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def runner(path: str) -> Callable[[np.ndarray], np.ndarray]:
    """The model as a function of one array."""
    session = opened(path)
    [name] = [port.name for port in session.get_inputs()]
    return lambda x: session.run(None, {name: x})[0]
