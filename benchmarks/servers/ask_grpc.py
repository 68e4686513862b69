"""Call a server over gRPC with tritonclient, from some threads for a while. Prints a line of JSON.

ask_grpc.py ADDRESS THREADS SECONDS
"""

from __future__ import annotations

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import tritonclient.grpc as triton

address, threads, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
given = triton.InferInput("x", [1, 3, 64, 64], "FP32")
given.set_data_from_numpy(np.random.default_rng(0).standard_normal((1, 3, 64, 64)).astype(np.float32))


def ask(until: float) -> tuple[list[float], int]:
    times: list[float] = []
    failed = 0
    with triton.InferenceServerClient(address) as client:
        client.infer("model", [given])
        while (begin := time.perf_counter()) < until:
            try:
                client.infer("model", [given], client_timeout=10)
                times.append(time.perf_counter() - begin)
            except triton.InferenceServerException:
                failed += 1
    return times, failed


with ThreadPoolExecutor(threads) as pool:
    parts = list(pool.map(ask, [time.perf_counter() + seconds] * threads))
times = [taken for times, _ in parts for taken in times]
print(json.dumps({"times": times, "failed": sum(failed for _, failed in parts)}))
