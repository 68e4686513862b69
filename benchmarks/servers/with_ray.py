"""Ray Serve, with an ASGI application of two lines in as many replicas as other servers have runs at a time."""

import signal
import sys
import threading

import numpy as np
import ray
from fastapi import FastAPI, Request, Response
from model import RUNS, runner
from ray import serve

application = FastAPI()


@serve.deployment(num_replicas=RUNS, max_ongoing_requests=64, ray_actor_options={"num_cpus": 0})
@serve.ingress(application)
class Onnx:
    def __init__(self, path: str) -> None:
        self.run = runner(path)

    @application.post("/infer")
    async def infer(self, request: Request) -> Response:
        x = np.frombuffer(await request.body(), np.float32).reshape(-1, 3, 64, 64)
        return Response(self.run(x).tobytes(), media_type="application/octet-stream")


if __name__ == "__main__":
    path, port = sys.argv[1], int(sys.argv[2])
    # not one that may be running here already
    ray.init("local", include_dashboard=False, num_cpus=RUNS, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(Onnx.bind(path))
    # last, for Ray sets a handler of its own
    told = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: told.set())
    told.wait()
    serve.shutdown()
    ray.shutdown()
