"""Runs in an environment that has onnxruntime and numpy and nothing of ours: answers the jobs of a folder.

    python inside.py FOLDER RESULTS FIRST

``jobs.json`` in FOLDER lists the jobs: a model file, a file of inputs, and whether onnxruntime optimises the graph.
Before every job its number is written to RESULTS/started, so that whoever waits knows which one ended the process;
answers go to RESULTS/<number>.npz and errors to RESULTS/<number>.json.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort


def main(folder: Path, results: Path, first: int) -> None:
    jobs = json.loads((folder / "jobs.json").read_text())
    opened: tuple[object, ort.InferenceSession | None] = (None, None)
    for number in range(first, len(jobs)):
        job = jobs[number]
        (results / "started").write_text(str(number))
        try:
            key = (job["model"], job["optimised"])
            if opened[0] != key:
                opened = (None, None)
                opened = (key, session(folder / job["model"], job["optimised"]))
        except Exception as error:
            (results / f"{number}.json").write_text(json.dumps({"load": one_line(error)}))
            continue
        try:
            assert opened[1] is not None
            feed = dict(np.load(folder / job["feed"])) if job["feed"] else None
            answers = opened[1].run(None, feed) if feed is not None else []
            np.savez(results / f"{number}.npz", *answers)
        except Exception as error:
            (results / f"{number}.json").write_text(json.dumps({"run": one_line(error)}))
    (results / "started").write_text(str(len(jobs)))
    (results / "version").write_text(ort.__version__)


def session(model: Path, optimised: bool) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimised else level.ORT_DISABLE_ALL
    return ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


def one_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
