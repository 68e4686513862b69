"""Limits and choices of a server, with the defaults that measurements and known attacks led to."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

MIB = 1 << 20


@dataclass(frozen=True)
class Limits:
    """What a request and a model may ask for.

    Args:
        body: bytes of a request, before and after decompression.
        elements: numbers in one tensor, and strings in one.
        batch: lengths of a first axis that is dynamic.
        queue: requests that may wait for every slot; one more is refused with 503.
        header_seconds, body_seconds: for a client to send them.
        run_seconds: from the arrival of a request to its answer.
        drain_seconds: for requests in progress once the server is told to stop.
        load_seconds, load_bytes: time and address space of the process that tries a model before it is served.
    """

    body: int = 64 * MIB
    elements: int = 1 << 26
    batch: int = 64
    queue: int = 64
    header_seconds: float = 5.0
    body_seconds: float = 10.0
    run_seconds: float = 30.0
    drain_seconds: float = 10.0
    load_seconds: float = 30.0
    load_bytes: int = 8192 * MIB


#: Whether requests are run together: where it was measured to pay, always where it is possible, or never.
Batching = Literal["auto", "on", "off"]


@dataclass(frozen=True)
class Settings:
    """How a server runs.

    Args:
        limits: of requests and models.
        slots: runs at a time in one process; 0 for the share of the cores that each of the worker processes has.
        threads: of each run.
        workers: processes that share the port.
        batching: see ``Batching``.
        batch_rows: that are run together at most; 0 for the longest batch that a request may have.
        batch_delay: seconds that a request may wait for others to be run with.
        control: whether clients may load and unload models.
        tokens: digests of the bearer tokens that clients must show; none are asked for where it is empty.
    """

    limits: Limits = Limits()
    slots: int = 0
    threads: int = 1
    workers: int = 1
    batching: Batching = "auto"
    batch_rows: int = 0
    batch_delay: float = 0.0
    control: bool = False
    tokens: tuple[bytes, ...] = ()

    @property
    def runs_at_a_time(self) -> int:
        return self.slots or max(1, cores() // (self.workers * self.threads))


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
