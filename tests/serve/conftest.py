"""Bundles to serve, made once, and servers in processes of their own."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import poolexport
from poolexport.nn import SoftPool2d
from processes import free_ports
from serve import models


class Mean(torch.nn.Module):
    """So little work that serving it is all that costs."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3))


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two bundles, ``mean`` and ``soft``, and a model without a manifest, ``slow.onnx``."""
    folder = tmp_path_factory.mktemp("bundles")
    torch.manual_seed(0)
    soft = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), SoftPool2d(2)).eval()
    poolexport.export(
        Mean().eval(), torch.randn(2, 3, 4, 5), folder / "mean", dynamic_shapes={0: "N"}, output_names=["y"]
    )
    dynamic = {0: "N", 2: "H", 3: "W"}
    poolexport.export(soft, torch.randn(1, 3, 9, 11), folder / "soft", dynamic_shapes=dynamic, output_names=["y"])
    models.slow(folder / "slow.onnx")
    return folder


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Server:
    """``poolexport serve`` in a process of its own; ``under`` are words before the command, such as nice's."""

    def __init__(self, *words: str | Path, cwd: Path, wait: bool = True, under: Sequence[str] = ()) -> None:
        self.port, self.grpc_port, self.metrics_port = free_ports(3)
        self.log = cwd / f"log-{self.port}"
        ports = ["--port", str(self.port), "--grpc-port", str(self.grpc_port), "--metrics-port", str(self.metrics_port)]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*under, sys.executable, "-m", "poolexport", "serve", *map(str, words), *ports],
                stderr=log,
                stdout=log,
                cwd=cwd,
                env={**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1"},
            )
        if wait:
            self.wait_until_ready()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def grpc_address(self) -> str:
        return f"127.0.0.1:{self.grpc_port}"

    def wait_until_ready(self, seconds: float = 30) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            assert self.process.poll() is None, self.log.read_text()
            with contextlib.suppress(OSError, http.client.HTTPException):
                if self.get("/v2/health/ready", timeout=2).status == 200:
                    return
            time.sleep(0.05)
        raise AssertionError(f"not ready in {seconds} s: {self.log.read_text()}")

    def get(self, path: str, **options: Any) -> Answer:
        return self.ask("GET", path, **options)

    def post(self, path: str, body: bytes = b"", headers: dict[str, str] | None = None, **options: Any) -> Answer:
        return self.ask("POST", path, body, headers, **options)

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
        timeout: float = 20,
        port: int | None = None,
    ) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", port or self.port, timeout=timeout)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def workers(self) -> list[int]:
        """Process numbers of the workers."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [int(pid) for pid in children]

    def listening(self) -> int:
        """How many sockets of the workers listen for HTTP; Granian's have one each."""
        rows = [line.split() for line in Path(f"/proc/{self.process.pid}/net/tcp").read_text().splitlines()[1:]]
        return sum(row[1].endswith(f":{self.port:04X}") and row[3] == "0A" for row in rows)

    def resident(self) -> int:
        """Bytes that the workers hold in memory and do not share with others."""
        total = 0
        for pid in self.workers():
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
            total += sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
        return total * 1024

    def forget_peak(self) -> None:
        """Start to measure ``peak`` anew."""
        for pid in self.workers():
            Path(f"/proc/{pid}/clear_refs").write_text("5")

    def peak(self) -> int:
        """Most bytes that the workers held in memory since then."""
        lines = [line for pid in self.workers() for line in Path(f"/proc/{pid}/status").read_text().splitlines()]
        return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))

    def stop(self, seconds: float = 20) -> int:
        """Tell it to stop; its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            for pid in self.workers():
                os.kill(pid, signal.SIGKILL)
            self.process.kill()
            raise


@contextlib.contextmanager
def serving(*words: str | Path, cwd: Path, under: Sequence[str] = ()) -> Iterator[Server]:
    server = Server(*words, cwd=cwd, under=under)
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def server(bundles: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server with everything, for all tests that do not stop it."""
    folder = tmp_path_factory.mktemp("server")
    for name, kind in (("half", 10), ("text", 8), ("whole", 6)):
        models.typed(folder / f"{name}.onnx", kind)
    words = [
        bundles / "mean",
        bundles / "soft",
        bundles / "slow.onnx",
        *(folder / f"{n}.onnx" for n in ("half", "text", "whole")),
    ]
    options = [
        "--control",
        "--max-body",
        "1",
        "--run-seconds",
        "3",
        "--drain-seconds",
        "5",
        "--queue",
        "4",
        "--slots",
        "2",
    ]
    with serving(*words, *options, cwd=folder) as running:
        yield running
