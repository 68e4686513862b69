"""What onnxruntime alone gets done: no server, no client. Prints a line of JSON.

bare.py MODEL SECONDS
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from model import BATCH, RUNS, runner


def timed(run: Callable[[], object], seconds: float) -> list[float]:
    """Seconds of every run, one after another for a while."""
    taken: list[float] = []
    now = time.perf_counter()
    until = now + seconds
    while now < until:
        run()
        before, now = now, time.perf_counter()
        taken.append(now - before)
    return taken


def measured(path: str, batch: int, threads: int, seconds: float) -> dict[str, float]:
    """Images a second, times of a run and processor time for each image, in milliseconds."""
    run = runner(path)
    x = np.random.default_rng(0).standard_normal((batch, 3, 64, 64)).astype(np.float32)
    run(x)
    used = time.process_time()
    with ThreadPoolExecutor(threads) as pool:
        runs = [one for part in pool.map(lambda _: timed(lambda: run(x), seconds), range(threads)) for one in part]
    images = batch * len(runs)
    p50, p99 = np.percentile(runs, (50, 99)) * 1e3
    return {
        "batch": batch,
        "rps": images / seconds,
        "p50": float(p50),
        "p99": float(p99),
        "cpu_ms": (time.process_time() - used) / images * 1e3,
    }


if __name__ == "__main__":
    path, seconds = sys.argv[1], float(sys.argv[2])
    batches = [measured(path, batch, RUNS, seconds) for batch in (1, BATCH // 2, BATCH)]
    print(json.dumps({"one": measured(path, 1, 1, seconds), "best": max(batches, key=lambda found: found["rps"])}))
