"""Hours of requests in minutes: ``make soak``. Prints what was found, and ends with 1 where a bound was broken.

Everything is sent to servers of its own at 127.0.0.1, and it ends by itself: after the minutes and requests that it was
given, and a few more for the rest.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from serve import fuzz, models
from serve.conftest import Server, serving
from serve.load import Record, crowd, post
from serve.requests import ALL, GOOD, document, times

MIB = 1 << 20
CLIENTS = 8
#: Bytes by which a server may have grown at the end: what its allocator and its metrics take once.
GROWTH = 20 * MIB
#: Times that memory is looked at, about.
PARTS = 10


class Judge:
    """Prints what was found, and remembers whether all of it is as it should be."""

    def __init__(self) -> None:
        self.broken: list[str] = []

    def __call__(self, what: str, held: bool, found: str) -> None:
        print(f"{'ok' if held else 'BROKEN':6}  {what}: {found}", flush=True)
        if not held:
            self.broken.append(what)

    @contextmanager
    def section(self, title: str) -> Iterator[None]:
        print(f"\n{title}", flush=True)
        started = time.monotonic()
        try:
            yield
        except AssertionError as error:
            self(title, False, str(error)[:2000])
        print(f"        {time.monotonic() - started:.0f} s")


def infer(body: bytes, header_length: str | None = None, model: str = "mean") -> bytes:
    headers = {} if header_length is None else {"Inference-Header-Content-Length": header_length}
    return post(f"/v2/models/{model}/infer", body, headers)


def mixture() -> list[bytes]:
    """Requests of all kinds in the proportions of a busy day: most are good, some are not."""
    good = [infer(GOOD.body, GOOD.header_length), infer(json.dumps(document()).encode())] * 50
    bad = [infer(request.body, request.header_length) for request in ALL if len(request.body) < 10_000]
    return good + bad + [infer(times(5), model="slow")] * 4


def soak(judge: Judge, server: Server, minutes: float, requests: int) -> None:
    """Ask for as long and as often as was wished; the memory must not grow."""
    sent = mixture()
    total, wall = 0, 0.0
    statuses: dict[int, int] = {}
    sizes: list[int] = []
    slowest: list[float] = []
    until = time.monotonic() + 60 * minutes
    # what is taken once, on the way to the first thousands
    asyncio.run(crowd(server.port, sent, CLIENTS, budget(5000), 0.01))
    time.sleep(1)
    first = server.resident()
    # also where hardly anything is answered
    end = until + requests / 100
    while time.monotonic() < min(end, until) or (total < requests and time.monotonic() < end):
        seconds = max(0.0, until - time.monotonic()) / max(1, PARTS - len(sizes))
        left = max(requests - total, 0)
        part = asyncio.run(crowd(server.port, sent, CLIENTS, budget(max(left // 2, 1000), max(seconds, 1)), 0.01))
        total += part.counts.total()
        wall += part.wall
        for status, count in part.counts.items():
            statuses[status] = statuses.get(status, 0) + count
        slowest.append(part.percentile(200, 99))
        time.sleep(1)
        sizes.append(server.resident())
    judge("statuses", statuses.keys() <= {200, 400, 503}, f"{statuses}; {total / wall:.0f} a second")
    told = ", ".join(f"{size / MIB:.1f}" for size in sizes[:: max(1, len(sizes) // PARTS)])
    judge("memory", max(sizes) - first < GROWTH, f"{first / MIB:.1f} MiB, then {told}")
    judge("p99 of good answers", max(slowest) < 1, f"{min(slowest) * 1e3:.1f} to {max(slowest) * 1e3:.1f} ms")


def budget(requests: int, seconds: float = 600.0):
    """Says whether to go on, for that many requests and seconds, whichever end first."""
    left = requests
    until = time.monotonic() + seconds

    def more() -> bool:
        nonlocal left
        left -= 1
        return left >= 0 and time.monotonic() < until

    return more


def overload(judge: Judge, server: Server, seconds: float, room: int) -> None:
    """Many times what can be answered, for a while."""
    before = server.resident()
    record: Record = asyncio.run(crowd(server.port, [infer(times(20), model="slow")], 64, budget(10**9, seconds), 0.05))
    counts = record.counts
    judge("statuses", counts.keys() == {200, 503}, f"{dict(counts)}, {counts[200] / record.wall:.0f} answers a second")
    judge("in the server at a time", record.in_the_server(200) < 2 * room, f"{record.in_the_server(200):.1f} of {room}")
    p50, p99 = (record.percentile(200, share) for share in (50, 99))
    judge("p99 of what was accepted", p99 < 3 * p50 + 0.1, f"{p99 * 1e3:.0f} ms; p50 {p50 * 1e3:.0f} ms")
    refused = [record.percentile(503, share) * 1e3 for share in (50, 99)]
    judge("p50 of refusals", refused[0] < 50, f"{refused[0]:.1f} ms; p99 {refused[1]:.1f} ms")
    time.sleep(1)
    grown = server.resident() - before
    judge("memory", grown < GROWTH, f"{grown / MIB:+.1f} MiB")


def main() -> None:
    """Soak a server."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=1, help="of the soak, at least")
    parser.add_argument("--requests", type=int, default=200_000, help="of the soak, at least")
    parser.add_argument("--overload", type=float, default=60, help="seconds of overload")
    parser.add_argument("--fuzz", type=int, default=20_000, help="requests made from the OpenAPI document")
    parser.add_argument("--bodies", type=int, default=1_000_000, help="mutated bodies for each decoder")
    parser.add_argument("--seed", type=int, default=int(np.random.default_rng().integers(1 << 31)))
    asked = parser.parse_args()
    print(f"--seed {asked.seed}")
    judge = Judge()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        words = [models.mean(folder / "mean.onnx"), models.slow(folder / "slow.onnx")]
        options = ["--queue", "4", "--slots", "2", "--max-body", "1", "--run-seconds", "5"]
        with serving(*words, *options, cwd=folder) as server:
            with judge.section("Requests as the document has them"):
                before = server.resident()
                statuses = fuzz.sent(server, ["mean", "slow"], asked.fuzz, asked.seed)
                judge("answers", True, f"{dict(statuses)}, all declared")
                time.sleep(1)
                grown = server.resident() - before
                judge("memory", grown < GROWTH, f"{grown / MIB:+.1f} MiB")
            with judge.section("More than can be answered"):
                overload(judge, server, asked.overload, room=4 * 2 + 2 * 2)
            with judge.section("A long day"):
                soak(judge, server, asked.minutes, asked.requests)
            workers = len(server.workers())
        told = server.log.read_text()
        judge("the log", '"level": "error"' not in told and workers == 1, f"{len(told.splitlines())} lines, no error")
    for title, decode, seeds in (
        ("Bodies over HTTP", fuzz.over_http, fuzz.http_seeds()),
        ("Bodies over gRPC", fuzz.over_grpc, fuzz.grpc_seeds()),
    ):
        with judge.section(title):
            judge("decoded", True, f"{dict(fuzz.decoded(decode, seeds, asked.bodies, asked.seed))}")
    print("\n" + (f"broken: {', '.join(judge.broken)}" if judge.broken else "all bounds held"))
    sys.exit(bool(judge.broken))


if __name__ == "__main__":
    main()
