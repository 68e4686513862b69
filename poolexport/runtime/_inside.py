"""Runs a file with one release of onnxruntime and answers over pipes; it needs numpy, onnxruntime and nothing of ours.

    python _inside.py PACKAGES

PACKAGES is the folder that holds both. A message is its length in 8 bytes, then an .npz: the first array is a head in
JSON, the others are what it speaks of. The first message says which model to open, those that follow are inputs.
"""

from __future__ import annotations

import io
import json
import os
import signal
import struct
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import IO, Any

if __name__ == "__main__":
    sys.path.insert(0, sys.argv[1])

import numpy as np

LENGTH = struct.Struct("<Q")
#: Seconds between two looks at whether whoever asked is still there.
LOOK = 0.5


def send(pipe: IO[bytes], head: Mapping[str, Any], arrays: Sequence[np.ndarray] = ()) -> None:
    """Write one message.

    Raises:
        ValueError: an array holds objects.
    """
    if any(array.dtype.hasobject for array in arrays):
        raise ValueError("text cannot be handed over")
    content = io.BytesIO()
    np.savez(content, np.frombuffer(json.dumps(head).encode(), np.uint8), *arrays)
    pipe.write(LENGTH.pack(content.getbuffer().nbytes))
    pipe.write(content.getbuffer())
    pipe.flush()


def receive(pipe: IO[bytes]) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Read one message.

    Raises:
        EOFError: there is none any more.
    """
    [length] = LENGTH.unpack(_exactly(pipe, LENGTH.size))
    with np.load(io.BytesIO(_exactly(pipe, length)), allow_pickle=False) as found:
        words, *arrays = [found[f"arr_{k}"] for k in range(len(found.files))]
    return json.loads(words.tobytes()), arrays


def _exactly(pipe: IO[bytes], length: int) -> bytes:
    content = pipe.read(length)
    if len(content) < length:
        raise EOFError
    return content


def _watch(parent: int) -> None:
    """End with whoever started this, even in the middle of a run."""
    while os.getppid() == parent:
        time.sleep(LOOK)
    os._exit(1)


def _serve(asked: IO[bytes], answered: IO[bytes]) -> None:
    import onnxruntime as ort

    head, arrays = receive(asked)
    try:
        options = ort.SessionOptions()
        options.log_severity_level = 4
        source = arrays[0].tobytes() if arrays else head["path"]
        session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        send(answered, {"error": _told(error)})
        return
    send(answered, {"version": ort.__version__})
    while True:
        head, arrays = receive(asked)
        try:
            answers = session.run(None, dict(zip(head["names"], arrays)))
            others = [type(answer).__name__ for answer in answers if not isinstance(answer, np.ndarray)]
            if others:
                raise TypeError(f"an output is a {others[0]}, which cannot be compared")
            send(answered, {}, answers)
        except Exception as error:
            send(answered, {"error": _told(error)})


def _told(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def main() -> None:
    # whoever asks decides when to stop, at the keyboard, too
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_watch, args=(os.getppid(),), daemon=True).start()
    # what libraries print must not come between two messages
    answered = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    try:
        _serve(sys.stdin.buffer, answered)
    except (EOFError, BrokenPipeError):
        return


if __name__ == "__main__":
    main()
