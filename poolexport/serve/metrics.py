"""What is counted, as Prometheus metrics; the statistics of the protocol are read from them.

With several worker processes the numbers of all of them are added up through files, as the client library does it where
``PROMETHEUS_MULTIPROC_DIR`` is set before this module is imported.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, multiprocess
from prometheus_client.registry import REGISTRY

_MODEL = ("model", "version")
REQUESTS = Counter("poolexport_requests", "Inference requests, by the status of their answer.", (*_MODEL, "status"))
REQUEST_SECONDS = Histogram(
    "poolexport_request_seconds",
    "From a request's arrival to its answer, of those that were answered.",
    _MODEL,
    buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
STAGE_SECONDS = Counter(
    "poolexport_stage_seconds", "Seconds that answered requests spent in each stage.", (*_MODEL, "stage")
)
ROWS = Counter("poolexport_rows", "Answers given; a request with a batch of 4 counts 4 times.", _MODEL)
RUNS = Counter("poolexport_runs", "Runs of the model; one may serve several requests.", _MODEL)
LAST = Gauge("poolexport_last_request_timestamp_seconds", "Time of the last answer.", _MODEL, multiprocess_mode="max")
WAITING = Gauge("poolexport_waiting_requests", "Requests that wait for a slot.", multiprocess_mode="livesum")
STAGES = ("queue", "input", "compute", "output")


class Meter:
    """Counts of one version of a model; kept as plain numbers and written to the metrics by ``flush``."""

    __slots__ = ("_failed", "_labels", "_seconds", "_stages", "last", "rows", "runs", "spent")

    def __init__(self, model: str, version: str) -> None:
        self._labels = (model, version)
        self._seconds = REQUEST_SECONDS.labels(model, version)
        self._stages = [STAGE_SECONDS.labels(model, version, stage) for stage in STAGES]
        self._failed: dict[int, int] = {}
        self.spent: list[tuple[float, float, float, float]] = []
        self.rows = self.runs = 0
        self.last = 0.0

    def answered(self, queue: float, input_: float, compute: float, output: float, rows: int) -> None:
        """Count a request that was answered, and the seconds it spent in each stage."""
        self.spent.append((queue, input_, compute, output))
        self.rows += rows

    def failed(self, status: int) -> None:
        """Count a request that was refused or could not be answered."""
        self._failed[status] = self._failed.get(status, 0) + 1

    def flush(self) -> None:
        """Write what was counted since the last time."""
        spent, self.spent = self.spent, []
        rows, self.rows = self.rows, 0
        runs, self.runs = self.runs, 0
        failed, self._failed = self._failed, {}
        for status, count in failed.items():
            REQUESTS.labels(*self._labels, str(status)).inc(count)
        if runs:
            RUNS.labels(*self._labels).inc(runs)
        if not spent:
            return
        REQUESTS.labels(*self._labels, "200").inc(len(spent))
        for stage, seconds in zip(self._stages, zip(*spent)):
            stage.inc(sum(seconds))
        for stages in spent:
            self._seconds.observe(sum(stages))
        ROWS.labels(*self._labels).inc(rows)
        LAST.labels(*self._labels).set(time.time())


@dataclass(frozen=True)
class Statistics:
    """The metrics of one version of a model, as the protocol's statistics want them; times are in seconds."""

    succeeded: int
    succeeded_seconds: float
    failed: int
    rows: int
    runs: int
    last: float
    stages: dict[str, float]


def statistics(model: str, version: str) -> Statistics:
    """What was counted for a version, in all worker processes."""
    found: dict[tuple[str, str], float] = {}
    for family in registry().collect():
        for sample in family.samples:
            labels = sample.labels
            if labels.get("model") == model and labels.get("version") == version:
                key = sample.name, labels.get("status") or labels.get("stage") or ""
                if "le" not in labels:
                    found[key] = found.get(key, 0.0) + sample.value
    return Statistics(
        succeeded=int(found.get(("poolexport_requests_total", "200"), 0)),
        succeeded_seconds=found.get(("poolexport_request_seconds_sum", ""), 0.0),
        failed=int(sum(v for (name, by), v in found.items() if name == "poolexport_requests_total" and by != "200")),
        rows=int(found.get(("poolexport_rows_total", ""), 0)),
        runs=int(found.get(("poolexport_runs_total", ""), 0)),
        last=found.get(("poolexport_last_request_timestamp_seconds", ""), 0.0),
        stages={stage: found.get(("poolexport_stage_seconds_total", stage), 0.0) for stage in STAGES},
    )


def registry() -> CollectorRegistry:
    """Where the numbers of all worker processes are."""
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        return REGISTRY
    together = CollectorRegistry()
    multiprocess.MultiProcessCollector(together)
    return together


def flush(meters: Iterable[Meter], waiting: int) -> None:
    """Write what the meters counted, and how many requests wait."""
    for meter in meters:
        meter.flush()
    WAITING.set(waiting)
