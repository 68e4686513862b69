"""PyTriton: Triton's C++ front end, which hands batches to functions of this process."""

from __future__ import annotations

import os
import signal
import sys
import sysconfig

import numpy as np
from model import BATCH, RUNS, opened
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

path, port, grpc_port, spare_port = sys.argv[1], *map(int, sys.argv[2:])
session = opened(path)
# its stub would find the library of another Python of that version
os.environ["LD_LIBRARY_PATH"] = sysconfig.get_config_var("LIBDIR")
[read], [written] = session.get_inputs(), session.get_outputs()


@batch
def infer(**inputs: np.ndarray) -> list[np.ndarray]:
    return session.run(None, inputs)


addresses = {f"{kind}_address": "127.0.0.1" for kind in ("http", "grpc", "metrics")}
ports = {"http_port": port, "grpc_port": grpc_port, "metrics_port": spare_port}
# so that its shared memory is freed
signal.signal(signal.SIGTERM, lambda *_: sys.exit())
with Triton(config=TritonConfig(**addresses, **ports)) as triton:
    triton.bind(
        model_name="model",
        infer_func=[infer] * RUNS,
        inputs=[Tensor(name=read.name, dtype=np.float32, shape=tuple(read.shape[1:]))],
        outputs=[Tensor(name=written.name, dtype=np.float32, shape=tuple(written.shape[1:]))],
        config=ModelConfig(max_batch_size=BATCH, batcher=DynamicBatcher()),
    )
    triton.serve()
