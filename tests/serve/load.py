"""Clients that ask as fast as they are answered, on one event loop; for the suite and for ``soak.py``."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass
class Record:
    """What clients got: how often each status, and the seconds of every answer, by status; 0 where there was none."""

    seconds: dict[int, list[float]] = field(default_factory=dict)
    wall: float = 0.0

    def add(self, status: int, seconds: float) -> None:
        self.seconds.setdefault(status, []).append(seconds)

    @property
    def counts(self) -> Counter[int]:
        return Counter({status: len(times) for status, times in self.seconds.items()})

    def percentile(self, status: int, share: float) -> float:
        return float(np.percentile(self.seconds[status], share))

    def in_the_server(self, status: int) -> float:
        """Requests of this status in the server at a time, by Little's law; no faster or slower machine changes it."""
        return sum(self.seconds[status]) / self.wall


def post(path: str, body: bytes, headers: dict[str, str] | None = None) -> bytes:
    """A request as it goes over the wire."""
    fields = {"Host": "a", "Content-Length": str(len(body)), **(headers or {})}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"POST {path} HTTP/1.1\r\n{head}\r\n".encode() + body


async def answer(reader: asyncio.StreamReader) -> tuple[int, bool]:
    """Status of the next answer of a connection, and whether the connection stays open."""
    head = await reader.readuntil(b"\r\n\r\n")
    fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if b": " in line)
    await reader.readexactly(int(fields.get(b"content-length", b"0")))
    return int(head.split(b" ", 2)[1]), fields.get(b"connection") != b"close"


async def crowd(port: int, requests: Sequence[bytes], clients: int, more: Callable[[], bool], pause: float) -> Record:
    """Ask at 127.0.0.1 with some connections at once.

    Args:
        port: of the server.
        requests: sent in turn.
        clients: connections, each with one request at a time.
        more: asked before every request.
        pause: seconds that a client waits after a 503.
    """
    record = Record()
    turn = 0

    async def ask() -> None:
        nonlocal turn
        writer = None
        while more():
            turn += 1
            started = time.perf_counter()
            try:
                if writer is None:
                    reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(requests[turn % len(requests)])
                status, stays = await asyncio.wait_for(answer(reader), 60)
            except (OSError, asyncio.IncompleteReadError, asyncio.TimeoutError):
                status, stays = 0, False
            record.add(status, time.perf_counter() - started)
            if not stays and writer is not None:
                writer.close()
                writer = None
            if status in (0, 503):
                await asyncio.sleep(pause)
        if writer is not None:
            writer.close()

    started = time.perf_counter()
    await asyncio.gather(*(ask() for _ in range(clients)))
    record.wall = time.perf_counter() - started
    return record
