"""A server of the comparison: started, asked for an answer that is compared, and put under load."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import serving_clients as clients
import serving_models as models
import torch
from serving_payloads import GRPC, Payload, asked_over_grpc, framed, image, payloads
from serving_processes import Server, Watch
from serving_rows import ROOT, SCRIPTS, Contender

from poolexport import tolerance
from processes import free_ports

CONCURRENCY = (1, 8, 32)
#: Requests whose answers are compared before and after every row's loads.
ASKED = 3
#: Variables that say where servers may write.
HOMES = ("TMPDIR", "BENTOML_HOME", "PYTRITON_HOME", "RAY_TMPDIR")
VARIABLES = {
    "OMP_NUM_THREADS": "1",
    "NO_COLOR": "1",
    "BENTOML_DO_NOT_TRACK": "true",
    "RAY_USAGE_STATS_ENABLED": "0",
    # servers are compared, not kernels: all of them run the same bodies
    "POOLEXPORT_KERNELS": "off",
}
Measurement = dict[str, float]


class RefusedError(Exception):
    """A server answers, and does not give what it was asked for."""


@dataclass
class Sample:
    """A model, and one request for it with the right answer.

    Args:
        bundle: what was exported.
        x: the image.
        peer, truth: answers of torch, in float32 and in float64.
        payloads: every form of the request, and
        bodies: the file that holds its bytes.
    """

    bundle: Path
    x: np.ndarray
    peer: np.ndarray
    truth: np.ndarray
    payloads: dict[str, Payload]
    bodies: dict[str, Path]

    @classmethod
    def made(cls, name: str, folder: Path) -> Sample:
        bundle = models.exported(name, folder)
        x = image(models.IMAGE)
        with torch.no_grad():
            peer = models.layers(name)(torch.from_numpy(x)).numpy()
            truth = models.layers(name).double()(torch.from_numpy(x).double()).numpy()
        forms = payloads(x)
        bodies = {form: folder / f"{name} {form}".replace(" ", "-") for form in (*forms, "gRPC")}
        for form, payload in forms.items():
            bodies[form].write_bytes(payload.body)
        bodies["gRPC"].write_bytes(framed(x))
        return cls(bundle, x, peer, truth, forms, bodies)

    def judge(self, answer: np.ndarray) -> str:
        """Why an answer is wrong; empty where it is right."""
        if answer.shape != self.truth.shape:
            return f"an answer of shape {answer.shape}"
        found = tolerance.judge(answer, self.peer, self.truth)
        return "" if found.passed else f"a wrong answer: {found.reason or f'off by {found.error:.3g}'}"


@dataclass
class Running:
    """A server that was started for a model, and where it listens."""

    server: Server
    port: int
    grpc_port: int
    sample: Sample
    idle: dict[str, float] = field(default_factory=dict)

    def ask(self, form: str) -> tuple[str, int]:
        """Why the answer to one request is wrong, and its size in bytes.

        Raises:
            RefusedError: its status is not 200.
        """
        if form == "gRPC":
            answer, size = asked_over_grpc(f"127.0.0.1:{self.grpc_port}", self.sample.x)
            return self.sample.judge(answer), size
        payload = self.sample.payloads[form]
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("POST", payload.path, payload.body, dict(payload.headers))
            answer = connection.getresponse()
            body = answer.read()
            if answer.status != 200:
                raise RefusedError(f"status {answer.status}: {body[:200].decode(errors='replace')}")
            return self.sample.judge(payload.decode({k.lower(): v for k, v in answer.getheaders()}, body)), len(body)
        finally:
            connection.close()

    def check(self, form: str) -> tuple[str, int]:
        """As ``ask``, several times; also where there is no answer, or none that can be read."""
        size = 0
        for _ in range(ASKED):
            try:
                wrong, size = self.ask(form)
            except RefusedError as error:
                wrong = str(error)
            except Exception as error:
                wrong = f"no answer that can be read: {type(error).__name__}: {error}"
            if wrong:
                return wrong, size
        return "", size

    def load(self, form: str, size: int, concurrency: int, seconds: int, grpc: str) -> clients.Load:
        body = self.sample.bodies[form]
        if form != "gRPC":
            payload = self.sample.payloads[form]
            url = f"http://127.0.0.1:{self.port}{payload.path}"
            return clients.wrk(url, body, payload.headers, concurrency, seconds)
        if grpc == "h2load":
            return clients.h2load(f"http://127.0.0.1:{self.grpc_port}{GRPC}", body, size, concurrency, seconds)
        return clients.tritonclient(f"127.0.0.1:{self.grpc_port}", concurrency, seconds)


def started(contender: Contender, python: Path | str, form: str, sample: Sample, folder: Path) -> Running:
    """A server that has answered its first request.

    Raises:
        RuntimeError: it does not come so far.
    """
    port, grpc_port, spare_port = free_ports(3)
    places = {"model": sample.bundle / "model.onnx", "bundle": sample.bundle}
    ports = {"port": port, "grpc_port": grpc_port, "spare_port": spare_port}
    words = [str(python), *(word.format(**places, **ports) for word in contender.words)]
    paths = {"PYTHONPATH": str(ROOT)} if contender.ours else {}
    server = Server(words, folder, {**VARIABLES, **paths, **dict.fromkeys(HOMES, str(folder))})
    running = Running(server, port, grpc_port, sample)
    refusal = ""

    def ready() -> bool:
        nonlocal refusal
        try:
            running.ask(form if form != "gRPC" else "binary")
        except RefusedError as error:
            refusal = f"{error}; "
            return False
        except (OSError, http.client.HTTPException):
            return False
        return True

    try:
        server.wait(ready, contender.patience)
    except RuntimeError as error:
        server.stop(contender.grace)
        raise RuntimeError(f"{refusal}{error}") from error
    running.idle = server.memory()
    return running


def measured(running: Running, form: str, seconds: int, grpc: str) -> tuple[dict[int, Measurement], str]:
    """Every concurrency once, and what was not as it should be."""
    wrong, size = running.check(form)
    found: dict[int, Measurement] = {}
    for concurrency in CONCURRENCY if not wrong else ():
        watch, used = Watch(), running.server.cpu()
        load = running.load(form, size, concurrency, seconds, grpc)
        used = running.server.cpu() - used
        if load.errors:
            return found, load.errors
        others = watch.others()
        running.server.settle()
        found[concurrency] = {
            "rps": load.requests / load.seconds,
            "p50": load.p50,
            "p99": load.p99,
            "cpu_ms": used / load.requests * 1e3,
            "others": others,
        }
    return found, wrong or running.check(form)[0]


def bare(sample: Sample, seconds: int) -> dict[int, Measurement]:
    """onnxruntime alone: one run at a time, and as many as there may be, with the batch that is best."""
    watch = Watch()
    script = str(SCRIPTS / "bare.py")
    words = [sys.executable, script, str(sample.bundle / "model.onnx"), str(seconds)]
    found = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
    others = watch.others()
    return {c: {**found["one" if c == 1 else "best"], "others": others} for c in CONCURRENCY}
