"""What is compared: servers, each with what it needs and how it is started, and a row for each form of request."""

from __future__ import annotations

import importlib.metadata
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from poolexport.cli.serve import serve

ROOT = Path(__file__).parents[1]
SCRIPTS = Path(__file__).parent / "servers"
#: The same for all.
RUNTIME = f"onnxruntime=={importlib.metadata.version('onnxruntime')}"


@dataclass(frozen=True)
class Contender:
    """A server.

    Args:
        name: of it.
        words: the command after the Python, with ``{model}`` (a file), ``{bundle}`` and three ports to fill in.
        packages: of its environment; that of this project where there are none.
        ours: whether it is this project's.
        patience: seconds that it may take to start.
        grace: seconds that it may take to end.
    """

    name: str
    words: tuple[str, ...]
    packages: tuple[str, ...] = ()
    ours: bool = True
    patience: float = 60
    grace: float = 5

    @property
    def slug(self) -> str:
        """The name as that of a file."""
        return self.name.lower().replace(",", "").replace(" serve", "").replace(" ", "-")


@dataclass(frozen=True)
class Row:
    """A server, asked in one form."""

    server: Contender
    payload: str

    @property
    def name(self) -> str:
        return f"{self.server.name}, {self.payload}"


def own(front: str, workers: int) -> Contender:
    """``poolexport serve``."""
    ports = ("--port", "{port}", "--grpc-port", "{grpc_port}")
    options = ("--server", front, "--workers", str(workers), "--log-level", "warning")
    words = ("-m", "poolexport", "serve", "model={bundle}", *ports, *options)
    return Contender(f"poolexport, {front} x {workers}", words)


def peer(name: str, *packages: str, patience: float = 60, grace: float = 5) -> Contender:
    """Somebody else's server, which a script of its name starts."""
    ports = ("{port}", "{grpc_port}", "{spare_port}")
    contender = Contender(name, (), packages, False, patience, grace)
    return replace(contender, words=(str(SCRIPTS / f"with_{contender.slug}.py"), "{model}", *ports))


#: One for each way to start ours; 1 stands for the number of worker processes.
OWN = tuple(own(front, workers) for front in ("granian", "uvicorn") for workers in (1, 2))
PYTRITON = peer("PyTriton", "nvidia-pytriton==0.7.0", RUNTIME, "numpy<2")
MLSERVER = peer("MLServer", "mlserver==1.7.1", RUNTIME)
KSERVE = peer("KServe", "kserve==0.21.0", RUNTIME)
#: Each in the forms that it is fastest with over HTTP, and over gRPC where that is faster than theirs.
PEERS = (
    Row(PYTRITON, "binary"),
    # it refuses binary tensors
    Row(MLSERVER, "JSON"),
    Row(MLSERVER, "gRPC"),
    # it accepts binary tensors, and is slower with them
    Row(KSERVE, "JSON"),
    Row(KSERVE, "gRPC"),
    Row(peer("BentoML", "bentoml==1.4.39", RUNTIME), "raw"),
    # an uploaded file, which is several times as fast as JSON
    Row(peer("LitServe", "litserve==0.2.19", "python-multipart", RUNTIME), "file"),
    Row(peer("Ray Serve", "ray[serve]==2.60.0", RUNTIME, patience=120, grace=15), "raw"),
)
#: Ours, on as many replicas as other servers have runs at a time; from this folder, for torch is not needed.
ON_RAY = Contender(
    "poolexport on Ray",
    ("-m", "poolexport", "serve", "model={bundle}", "--ray", "--replicas", "2", "--port", "{port}"),
    (
        "ray[serve]==2.60.0",
        RUNTIME,
        *("onnx", "click", "rich", "starlette", "granian", "orjson", "grpcio", "prometheus-client"),
    ),
    patience=120,
    grace=15,
)


def rows() -> list[Row]:
    """All rows, ours first. Our server is among them on Ray, too, once it has the option."""
    ours = [Row(server, payload) for payload in ("binary", "JSON") for server in OWN]
    ours += [Row(server, "gRPC") for server in OWN[:2]]
    on_ray = [Row(ON_RAY, "binary")] if _offers_ray() else []
    return [*ours, *on_ray, *PEERS]


def _offers_ray() -> bool:
    return any("--ray" in option.opts for option in serve.params)


def versions(python: Path | str, packages: Iterable[str]) -> dict[str, str]:
    """Versions of what is installed in an environment."""
    names = [package.partition("=")[0].partition("<")[0].partition("[")[0] for package in packages]
    code = "import importlib.metadata as m, sys; print(*map(m.version, sys.argv[1:]))"
    found = subprocess.run([str(python), "-c", code, *names], capture_output=True, text=True, check=True).stdout
    return dict(zip(names, found.split()))
