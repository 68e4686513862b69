"""Whether the rows of a batch are answered independently, so that requests may be put together into one batch."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnxruntime as ort

#: Batches of other sizes are added up in another order; a model that mixes its rows is wrong by far more.
RTOL = 1e-3


def batch_axis(session: ort.InferenceSession) -> str:
    """The name of axis 0 where every input and output has the same dynamic one; empty where there is none."""
    names = {port.shape[0] if port.shape else None for port in (*session.get_inputs(), *session.get_outputs())}
    name = names.pop() if len(names) == 1 else None
    return name if isinstance(name, str) else ""


def mixed_rows(session: ort.InferenceSession, feed: Mapping[str, np.ndarray]) -> str:
    """Why rows of a batch may not come from different requests; empty where they may.

    Two different rows are run one by one and together; a model that does not take two is one of those that mix them.

    Args:
        session: of a model for which ``batch_axis`` has a name.
        feed: an input that the model takes; its first row is used, and the same row backwards.
    """
    one = {name: x[:1] for name, x in feed.items()}
    other = {name: x[..., ::-1] if x.ndim > 1 else x + x for name, x in one.items()}
    both = {name: np.ascontiguousarray(np.concatenate([one[name], other[name]])) for name in one}
    try:
        apart = [session.run(None, {name: np.ascontiguousarray(x) for name, x in row.items()}) for row in (one, other)]
        answers = session.run(None, both)
    except Exception as error:
        return f"it does not take two rows at once: {str(error).strip().splitlines()[0]}"
    for port, together, first, second in zip(session.get_outputs(), answers, *apart):
        expected = np.concatenate([first, second])
        if together.shape != expected.shape:
            return f"output {port.name!r} has shape {together.shape} for two rows, {first.shape} for one"
        scale = max(1.0, float(np.abs(expected[np.isfinite(expected)]).max(initial=0.0)))
        if not np.allclose(together, expected, rtol=RTOL, atol=RTOL * scale, equal_nan=True):
            return f"a row of output {port.name!r} depends on the other rows of its batch"
    return ""
