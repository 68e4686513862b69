"""BentoML, as its documentation tells to serve a model on the bytes of a request."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import bentoml
import numpy as np
from bentoml.validators import ContentType
from model import RUNS, runner


@bentoml.service(workers=RUNS, logging={"access": {"enabled": False}})
class Onnx:
    def __init__(self) -> None:
        self.run = runner(os.environ["MODEL"])

    @bentoml.api
    def infer(self, x: Annotated[Path, ContentType("application/octet-stream")], /) -> np.ndarray:
        return self.run(np.fromfile(x, np.float32).reshape(-1, 3, 64, 64))


if __name__ == "__main__":
    path, port = sys.argv[1:3]
    words = [
        "serve",
        "with_bentoml:Onnx",
        "--host",
        "127.0.0.1",
        "--port",
        port,
        "--working-dir",
        os.path.dirname(__file__),
    ]
    os.environ["MODEL"] = path
    os.execv(sys.executable, [sys.executable, "-m", "bentoml", *words])
