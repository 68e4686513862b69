"""An environment of another onnxruntime, made of the installed one with a few lines that change what it does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort

from poolexport.runtime.environments import Environment

#: What the lines may change: ``InferenceSession`` is then the class below, and ``run`` what they define.
SEAM = """

class InferenceSession(InferenceSession):
    run = changed(InferenceSession.run)
"""
RIGHT = "changed = lambda run: run"
#: Every answer is off by a share of 1e-3.
WRONG = "changed = lambda run: lambda *given: [answer * answer.dtype.type(1.001) for answer in run(*given)]"
DIES = "import os, signal\nchanged = lambda run: lambda *given: os.kill(os.getpid(), signal.SIGSEGV)"
LEAVES = "import os\nchanged = lambda run: lambda *given: os.write(2, b'no room') and os._exit(7)"
HANGS = "import time\nchanged = lambda run: lambda *given: time.sleep(60)"
TALKS = "import os\nchanged = lambda run: lambda *given: os.write(1, b'warning') and run(*given)"
REFUSES = "def changed(run):\n    def other(*given):\n        raise ValueError('no kernel')\n    return other"


def environment(folder: Path, lines: str, version: str = "9.9.9") -> Environment:
    """The environment, in a folder that does not exist yet."""
    package = folder / "onnxruntime"
    package.mkdir(parents=True)
    source = Path(ort.__file__).parent
    for entry in source.iterdir():
        if entry.name != "__init__.py":
            (package / entry.name).symlink_to(entry)
    (package / "__init__.py").write_text((source / "__init__.py").read_text() + "\n" + lines + SEAM)
    for entry in Path(np.__file__).parents[1].glob("numpy*"):
        (folder / entry.name).symlink_to(entry)
    return Environment(version, folder)
