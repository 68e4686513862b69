"""KServe's model server, which listens at every address of the machine whatever one asks."""

from __future__ import annotations

import asyncio
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer
from kserve.utils.utils import generate_uuid
from model import RUNS, runner


class Onnx(Model):
    def __init__(self, path: str) -> None:
        super().__init__("model")
        self.run = runner(path)
        self.pool = ThreadPoolExecutor(RUNS)
        self.ready = True

    async def predict(self, payload: InferRequest, headers: Any = None, response_headers: Any = None) -> InferResponse:
        [x] = payload.inputs
        y = await asyncio.get_running_loop().run_in_executor(self.pool, self.run, x.as_numpy())
        output = InferOutput(name="y", shape=list(y.shape), datatype="FP32")
        # clients of gRPC want bytes, and those of JSON do not
        output.set_data_from_numpy(y, binary_data=payload.from_grpc)
        return InferResponse(response_id=generate_uuid(), model_name=self.name, infer_outputs=[output])


if __name__ == "__main__":
    path, port, grpc_port = sys.argv[1], *map(int, sys.argv[2:4])
    ModelServer(http_port=port, grpc_port=grpc_port, workers=1).start([Onnx(path)])
