"""MLServer, with a runtime for onnxruntime as its documentation tells to write one.

Its own parallel workers are not used: passing tensors to them costs more than they win on a model that is nearly free.
"""

from __future__ import annotations

import asyncio
import sys
from concurrent.futures import ThreadPoolExecutor

from mlserver import MLModel, MLServer
from mlserver.codecs import NumpyCodec
from mlserver.settings import ModelParameters, ModelSettings, Settings
from mlserver.types import InferenceRequest, InferenceResponse
from model import RUNS, runner


class Onnx(MLModel):
    async def load(self) -> bool:
        self.run = runner(self.settings.parameters.uri)
        self.pool = ThreadPoolExecutor(RUNS)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        [x] = payload.inputs
        y = await asyncio.get_running_loop().run_in_executor(self.pool, self.run, NumpyCodec.decode_input(x))
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("y", y)])


async def serve() -> None:
    path, port, grpc_port, spare_port = sys.argv[1], *map(int, sys.argv[2:])
    ports = {"http_port": port, "grpc_port": grpc_port, "metrics_port": spare_port}
    settings = Settings(host="127.0.0.1", **ports, parallel_workers=0, debug=False)
    model = ModelSettings(name="model", implementation=Onnx, parameters=ModelParameters(uri=path))
    await MLServer(settings).start([model])


if __name__ == "__main__":
    asyncio.run(serve())
