"""LitServe, as its documentation tells to serve a model on uploaded files."""

import os
import sys
from typing import Any

import litserve
import numpy as np
from fastapi import Request
from model import RUNS, runner


class Onnx(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.run = runner(os.environ["MODEL"])

    def decode_request(self, request: Request) -> np.ndarray:
        return np.frombuffer(request["x"].file.read(), np.float32).reshape(1, 3, 64, 64)

    def predict(self, x: np.ndarray) -> np.ndarray:
        return self.run(x)

    def encode_response(self, output: np.ndarray) -> dict[str, Any]:
        return {"y": output.tolist()}


if __name__ == "__main__":
    os.environ["MODEL"] = sys.argv[1]
    server = litserve.LitServer(Onnx(api_path="/infer"), accelerator="cpu", workers_per_device=RUNS)
    server.run(host="127.0.0.1", port=int(sys.argv[2]), generate_client_file=False, log_level="warning")
