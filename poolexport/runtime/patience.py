"""Runs that end: a file may hold a loop that does not."""

from __future__ import annotations

import threading
from collections.abc import Mapping

import numpy as np
import onnxruntime as ort

#: Seconds that a file has for one answer.
PATIENCE = 300.0


def answers(
    session: ort.InferenceSession, feed: Mapping[str, np.ndarray], seconds: float | None = None
) -> list[np.ndarray]:
    """Every output of a session.

    Args:
        session, feed: what to run, on what.
        seconds: to wait; ``PATIENCE`` by default.

    Raises:
        TimeoutError: there is none after that many seconds; the run is over then.
    """
    seconds = PATIENCE if seconds is None else seconds
    options = ort.RunOptions()
    over = threading.Event()

    def end() -> None:
        over.set()
        options.terminate = True

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        return list(session.run(None, dict(feed), options))
    except Exception as error:
        if over.is_set():
            reason = f"gave no answer within {seconds:g} seconds; does it hold a loop without end?"
            raise TimeoutError(reason) from error
        raise
    finally:
        timer.cancel()
