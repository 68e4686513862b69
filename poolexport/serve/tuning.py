"""Which way of serving a model gets most done on this machine: each is started, asked as fast as it answers, and timed.

A way is how many threads a run has, how many processes share the port, and how many rows are run together. The rounds
go through all ways in turn, so that a machine that does other things, too, slows none of them more than others.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from poolexport.bundle import SAMPLE
from poolexport.errors import InputError, StartError
from poolexport.serve.check import tried
from poolexport.serve.config import Limits, cores
from poolexport.serve.model import QUICK
from poolexport.serve.protocol import NAMES, Array, to_bytes

#: Times that every way is measured, unless it falls behind.
ROUNDS = 3
#: Of the best: ways that get less done than this in the first round are not measured again, and ways that get more
#: done than this in the end are as good as the best, and the simplest of them is chosen.
BEHIND, EQUAL = 0.8, 0.97
#: Seconds for a server to start, beside those for trying its model.
STARTED = 30.0
NAME = "model"
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, order=True)
class Way:
    """A way of serving, simplest first.

    Args:
        workers: processes.
        batch: rows that are run together at most; 1 for each request by itself.
        threads: of each run.
    """

    workers: int = 1
    batch: int = 1
    threads: int = 1

    @property
    def slots(self) -> int:
        """Runs at a time in each process."""
        return max(1, cores() // (self.workers * self.threads))

    @property
    def options(self) -> dict[str, Any]:
        """The options of ``poolexport serve`` for it."""
        together = {"batching": "on", "batch_rows": self.batch} if self.batch > 1 else {"batching": "off"}
        return {"workers": self.workers, "slots": self.slots, "threads": self.threads, **together}


@dataclass
class Result:
    """What was measured of a way: requests a second in each round, and the seconds of every answer."""

    way: Way
    rates: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        return statistics.median(self.rates)

    def percentile(self, share: float) -> float:
        return float(np.percentile(self.seconds, share))


@dataclass(frozen=True)
class Tuned:
    """All results, and the best of them."""

    results: Sequence[Result]
    best: Result
    clients: int

    def document(self) -> dict[str, Any]:
        """The options of ``poolexport serve``, and what they were chosen by."""
        rows = [
            {
                **result.way.options,
                "requests_per_second": round(result.rate, 1),
                "p50_ms": round(1e3 * result.percentile(50), 3),
                "p99_ms": round(1e3 * result.percentile(99), 3),
                "rounds": len(result.rates),
            }
            for result in self.results
        ]
        return {**self.best.way.options, "measured": {**machine(), "clients": self.clients, "ways": rows}}


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "cores": cores(),
        "processor": platform.processor() or platform.machine(),
        "system": platform.system(),
        "python": platform.python_version(),
        "onnxruntime": version("onnxruntime"),
        "poolexport": version("poolexport"),
        "date": date.today().isoformat(),
    }


def ways(
    threads: Sequence[int] | None, workers: Sequence[int] | None, batches: Sequence[int] | None, *, batched: bool
) -> list[Way]:
    """The ways to measure, which ask for no more cores than there are.

    Args:
        threads, workers, batches: to choose from; None for powers of two, and batches of 1, 4 and 16.
        batched: whether rows of requests may be run together.

    Raises:
        InputError: no way is left.
    """
    powers = [2**power for power in range(cores().bit_length())]
    counts = sorted({*powers, cores()})
    if batches and max(batches) > 1 and not batched:
        raise InputError("rows of this model were not proven to be independent, so only --batch 1 can be measured")
    if batches and max(batches) > Limits().batch:
        raise InputError(f"--batch {max(batches)}: at most {Limits().batch} rows are run together")
    found = sorted(
        Way(w, b, t)
        for w in workers or counts
        for t in threads or counts
        for b in batches or ((1, 4, 16) if batched else (1,))
        if w * t <= cores()
    )
    if not found:
        raise InputError(f"threads times workers must not exceed the {cores()} cores that there are")
    return found


def sample(model: Path, inputs: Path | None, *, batched: bool) -> dict[str, Array]:
    """The arrays of the request that is sent: one row of the bundle's sample, or what a file holds.

    Raises:
        InputError: there are none.
    """
    file = inputs or model / SAMPLE
    if not file.is_file():
        raise InputError(f"there is no sample in {model}; give arrays to ask with as --inputs FILE.npz")
    if not zipfile.is_zipfile(file):
        raise InputError(f"{file} is no .npz with an array for each input")
    try:
        with np.load(file, allow_pickle=False) as held:
            arrays = dict(held)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(f"{file} cannot be read as .npz: {error}") from error
    if inputs is not None:
        return arrays
    feeds = {name.removeprefix("input/"): array for name, array in arrays.items() if name.startswith("input/")}
    return {name: array[:1] for name, array in feeds.items()} if batched else feeds


def tune(
    model: Path,
    *,
    inputs: Path | None = None,
    clients: int = 8,
    seconds: float = 2.0,
    p99: float = 0.0,
    threads: Sequence[int] | None = None,
    workers: Sequence[int] | None = None,
    batches: Sequence[int] | None = None,
    progress: Progress = lambda *_: None,
) -> Tuned:
    """Measure the ways of serving a model.

    Args:
        model: bundle or .onnx file.
        inputs: .npz with the arrays to ask with; None for a row of the bundle's sample.
        clients: that ask at a time, each as soon as it is answered; 1 looks for the quickest answers.
        seconds: that each way is measured for in each round.
        p99: seconds in which 99 of 100 requests must be answered; 0 for any.
        threads, workers, batches: to choose from; None for what suits the machine.
        progress: called with ``"tune"``, the measurements made and their number.

    Raises:
        InputError: the model is refused, there is nothing to ask with, or no way is quick enough.
        StartError: a server does not start or does not answer.
    """
    limits = Limits()
    facts = tried(model, limits)
    if batches is None and facts.steady and facts.seconds < QUICK:
        # runs that are made at once have nobody to be made together with
        batches = (1,)
    results = [Result(way) for way in ways(threads, workers, batches, batched=facts.batched)]
    body, length = request(sample(model, inputs, batched=facts.batched))
    todo, made = results, 0
    for left in range(ROUNDS, 0, -1):
        for index, result in enumerate(todo):
            progress("tune", made, made + left * len(todo) - index)
            with _serving(model, result.way, limits.load_seconds + STARTED) as port:
                rate, times = asyncio.run(_asked(port, body, length, clients, seconds))
            result.rates.append(rate)
            result.seconds.extend(times)
            made += 1
        most = max(result.rate for result in results)
        todo = [result for result in todo if result.rate >= BEHIND * most]
    return Tuned(results, best(results, p99), clients)


def best(results: Sequence[Result], p99: float = 0.0) -> Result:
    """The simplest of those that get most done, among those that are quick enough.

    Raises:
        InputError: none is.
    """
    fit = [result for result in results if not p99 or result.percentile(99) <= p99]
    if not fit:
        quickest = 1e3 * min(result.percentile(99) for result in results)
        raise InputError(
            f"no way answers 99 of 100 requests in {1e3 * p99:g} ms; the quickest takes {quickest:.3g} ms; ask with "
            "fewer clients, or allow more"
        )
    most = max(result.rate for result in fit)
    return min((result for result in fit if result.rate >= EQUAL * most), key=lambda result: result.way)


def request(feeds: Mapping[str, Array]) -> tuple[bytes, int]:
    """The body of a request with binary tensors, and the bytes of JSON at its start."""
    parts = [to_bytes(array) for array in feeds.values()]
    entries = [
        {
            "name": name,
            "datatype": NAMES.get(array.dtype.char, str(array.dtype)),
            "shape": array.shape,
            "parameters": {"binary_data_size": len(part)},
        }
        for (name, array), part in zip(feeds.items(), parts)
    ]
    head = orjson.dumps({"inputs": entries, "parameters": {"binary_data_output": True}})
    return b"".join((head, *parts)), len(head)


@contextlib.contextmanager
def _serving(model: Path, way: Way, patience: float) -> Iterator[int]:
    """A server of its own process; its port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [sys.executable, "-m", "poolexport", "serve", f"{NAME}={model}", "--port", str(port), "--grpc-port", "0"]
    for name, value in way.options.items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [*words, "--log-level", "warning"], stdout=log, stderr=log, env={**os.environ, "NO_COLOR": "1"}
        )
        try:
            _wait(process, port, patience, log)
            yield port
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(process: subprocess.Popen[bytes], port: int, patience: float, log: Any) -> None:
    until = time.monotonic() + patience
    while time.monotonic() < until:
        if process.poll() is not None:
            log.seek(0)
            told = log.read().decode(errors="replace").strip().splitlines()
            raise StartError(f"a server to measure did not start: {told[-1] if told else process.returncode}")
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        with contextlib.suppress(OSError, http.client.HTTPException), contextlib.closing(connection):
            connection.request("GET", "/v2/health/ready")
            if connection.getresponse().status == 200:
                return
        time.sleep(0.02)
    raise StartError(f"a server to measure was not ready in {patience:g} s")


async def _asked(port: int, body: bytes, length: int, clients: int, seconds: float) -> tuple[float, list[float]]:
    """Requests a second, and the seconds that each took."""
    head = (
        f"POST /v2/models/{NAME}/infer HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/octet-stream\r\n"
        f"Inference-Header-Content-Length: {length}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    crowd = _Crowd(head.encode() + body)
    loop = asyncio.get_running_loop()
    for _ in range(clients):
        await loop.create_connection(lambda: _Client(crowd), "127.0.0.1", port)
    # the first answers are slower: memory is taken, and processors wake up
    await crowd.asking(seconds / 4)
    crowd.seconds.clear()
    started = time.perf_counter()
    await crowd.asking(seconds)
    times, wall = crowd.seconds, time.perf_counter() - started
    if not times:
        raise StartError(f"no request was answered in {seconds:g} s; give it longer with --seconds")
    return len(times) / wall, times


class _Crowd:
    """What clients share: the request, the time of every answer, and the first failure."""

    def __init__(self, message: bytes) -> None:
        self.message = message
        self.seconds: list[float] = []
        self.failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def asking(self, seconds: float) -> None:
        await asyncio.wait([self.failure], timeout=seconds)
        if self.failure.done():
            self.failure.result()

    def fail(self, reason: str, *, refused: bool = False) -> None:
        if not self.failure.done():
            bad = InputError(f"the model does not take these inputs: {reason}")
            self.failure.set_exception(
                bad if refused else StartError(f"the server to measure did not answer: {reason}")
            )


class _Client(asyncio.Protocol):
    """One connection that asks again as soon as it is answered."""

    def __init__(self, crowd: _Crowd) -> None:
        self._crowd = crowd
        self._answer = bytearray()
        self._length = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._ask()

    def _ask(self) -> None:
        self._answer.clear()
        self._length = 0
        self._started = time.perf_counter()
        self._transport.write(self._crowd.message)

    def data_received(self, data: bytes) -> None:
        self._answer += data
        if not self._length:
            end = self._answer.find(b"\r\n\r\n")
            if end < 0:
                return
            head = bytes(self._answer[:end]).lower()
            self._length = end + 4 + int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
        if len(self._answer) < self._length:
            return
        if not self._answer.startswith(b"HTTP/1.1 200"):
            text = self._answer.partition(b"\r\n\r\n")[2]
            with contextlib.suppress(ValueError, KeyError, TypeError):
                text = json.loads(text)["error"].encode()
            self._crowd.fail(text.decode(errors="replace")[:300], refused=self._answer.startswith(b"HTTP/1.1 4"))
            return
        self._crowd.seconds.append(time.perf_counter() - self._started)
        self._ask()

    def connection_lost(self, exc: Exception | None) -> None:
        self._crowd.fail("it closed the connection")
