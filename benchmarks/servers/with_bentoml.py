"""BentoML, as its documentation tells to serve a model on arrays."""

from __future__ import annotations

import os
import sys

import bentoml
import numpy as np
from model import RUNS, runner


@bentoml.service(workers=RUNS, logging={"access": {"enabled": False}})
class Onnx:
    def __init__(self) -> None:
        self.run = runner(os.environ["MODEL"])

    @bentoml.api
    def infer(self, x: np.ndarray) -> np.ndarray:
        return self.run(x.astype(np.float32))


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
