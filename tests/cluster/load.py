"""Clients that ask the proxies of a cluster, look at every number they get, and ask once more where they get none."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from poolexport.client import AGAIN

#: Seconds that a client waits before it asks again, as poolexport's own does; and for an answer.
PAUSE, PATIENCE = 0.2, 20.0


@dataclass
class Tally:
    """What clients got.

    Args:
        first: how often each status came first; 0 for a connection that failed.
        wrong: answers of no version that may be served.
        lost: requests without an answer, asked twice.
        versions: how many answers each version gave.
        times: when answers came, and which version they are of.
        slowest: seconds that an answer took, both times together.
    """

    first: Counter[int] = field(default_factory=Counter)
    wrong: int = 0
    lost: list[str] = field(default_factory=list)
    versions: Counter[float] = field(default_factory=Counter)
    times: list[tuple[float, float]] = field(default_factory=list)
    slowest: float = 0.0

    def told(self) -> str:
        again = sum(count for status, count in self.first.items() if status != 200)
        gap = max((b[0] - a[0] for a, b in zip(sorted(self.times), sorted(self.times)[1:])), default=0.0)
        return (
            f"{sum(self.first.values())} requests, {again} asked again {dict(self.first)}, {len(self.lost)} lost, "
            f"{self.wrong} wrong, versions {dict(self.versions)}, slowest {self.slowest:.2f} s, longest gap {gap:.2f} s"
        )


class Load:
    """Threads that ask until they are told to stop; a context manager.

    Args:
        addresses: of the proxies; each thread begins with another, and asks again at the next.
        model: a mean of planes, times the number of its version.
        versions: numbers that it may be multiplied by.
        token: that is shown.
        threads: of clients.
        port: of the proxies.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        model: str,
        versions: Sequence[float],
        token: str,
        threads: int = 4,
        port: int = 8000,
    ) -> None:
        self.addresses = addresses
        self.path = f"/v2/models/{model}/infer"
        self.allowed = versions
        self.token = token
        self.port = port
        self.tally = Tally()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(threads)]

    def __enter__(self) -> Tally:
        for thread in self._threads:
            thread.start()
        return self.tally

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, number: int) -> None:
        rng = np.random.default_rng(number)
        connections: dict[str, http.client.HTTPConnection] = {}
        while not self._stop.is_set():
            x = rng.standard_normal((1 + number % 3, 3, 4, 5)).astype(np.float32)
            started = time.monotonic()
            status, answer, told = 0, None, ""
            for attempt in range(2):
                address = self.addresses[(number + attempt) % len(self.addresses)]
                connection = connections.pop(address, None) or http.client.HTTPConnection(
                    address, self.port, timeout=PATIENCE
                )
                try:
                    status, answer, told = self._once(connection, x)
                    connections[address] = connection
                except (OSError, http.client.HTTPException) as error:
                    connection.close()
                    status, answer, told = 0, None, repr(error)
                if not attempt:
                    first = status
                if answer is not None or status not in AGAIN:
                    break
                time.sleep(PAUSE)
            self._count(first, x, answer, f"{first}, then {status}: {told}", time.monotonic() - started)

    def _once(self, connection: http.client.HTTPConnection, x: np.ndarray) -> tuple[int, np.ndarray | None, str]:
        entry = {"name": "x", "shape": list(x.shape), "datatype": "FP32", "parameters": {"binary_data_size": x.nbytes}}
        head = json.dumps({"inputs": [entry], "parameters": {"binary_data_output": True}}).encode()
        headers = {"Inference-Header-Content-Length": str(len(head)), "Authorization": f"Bearer {self.token}"}
        connection.request("POST", self.path, head + x.tobytes(), headers)
        response = connection.getresponse()
        body = response.read()
        if response.status != 200:
            return response.status, None, body[:200].decode(errors="replace")
        length = int(response.headers["Inference-Header-Content-Length"])
        [output] = json.loads(body[:length])["outputs"]
        return 200, np.frombuffer(body[length:], np.float32).reshape(output["shape"]), ""

    def _count(self, first: int, x: np.ndarray, answer: np.ndarray | None, told: str, seconds: float) -> None:
        with self._lock:
            self.tally.first[first] += 1
            if answer is None:
                self.tally.lost.append(told)
                return
            mean = x.astype(np.float64).mean((2, 3))
            for version in self.allowed:
                if answer.shape == mean.shape and np.allclose(answer, version * mean, rtol=1e-5, atol=1e-6):
                    self.tally.versions[version] += 1
                    self.tally.times.append((time.monotonic(), version))
                    break
            else:
                self.tally.wrong += 1
            self.tally.slowest = max(self.tally.slowest, seconds)
