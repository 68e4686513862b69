"""Runs in an environment that has onnxruntime and numpy and nothing of ours: answers the jobs of a folder.

    python inside.py FOLDER RESULTS FIRST [LIBRARY]

``jobs.json`` in FOLDER lists the jobs: a model file, a file of inputs, whether onnxruntime optimises the graph, and
which operators have to run on the native kernels of LIBRARY. Before every job its number is written to RESULTS/started,
so that whoever waits knows which one ended the process; answers go to RESULTS/<number>.npz and errors to
RESULTS/<number>.json.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort


def main(folder: Path, results: Path, first: int, library: str = "") -> None:
    jobs = json.loads((folder / "jobs.json").read_text())
    opened: tuple[object, ort.InferenceSession | None] = (None, None)
    for number in range(first, len(jobs)):
        job = jobs[number]
        (results / "started").write_text(str(number))
        try:
            # A session tells once which kernels it ran.
            key = (job["model"], job["optimised"], number if job["operators"] else None)
            if opened[0] != key:
                opened = (None, None)
                options = options_of(job, library, results)
                model = str(folder / job["model"])
                opened = (key, ort.InferenceSession(model, options, providers=["CPUExecutionProvider"]))
        except Exception as error:
            (results / f"{number}.json").write_text(json.dumps({"load": one_line(error)}))
            continue
        try:
            assert opened[1] is not None
            feed = dict(np.load(folder / job["feed"])) if job["feed"] else None
            answers = opened[1].run(None, feed) if feed is not None else []
            if job["operators"] and (lost := set(job["operators"]) - ran(opened[1])):
                raise RuntimeError(f"{', '.join(sorted(lost))} did not run on native kernels")
            np.savez(results / f"{number}.npz", *answers)
        except Exception as error:
            (results / f"{number}.json").write_text(json.dumps({"run": one_line(error)}))
    (results / "started").write_text(str(len(jobs)))
    (results / "version").write_text(ort.__version__)


def options_of(job: dict[str, Any], library: str, results: Path) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if job["optimised"] else level.ORT_DISABLE_ALL
    if job["operators"]:
        if library:
            options.register_custom_ops_library(library)
        options.enable_profiling = True
        options.profile_file_prefix = str(results / "profile")
    return options


def ran(session: ort.InferenceSession) -> set[str]:
    """The operators whose kernels a session called; a function's body shows as the operators in it."""
    profile = Path(session.end_profiling())
    events = json.loads(profile.read_text())
    profile.unlink()
    return {event["args"]["op_name"] for event in events if "op_name" in event.get("args", {})}


def one_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:])
