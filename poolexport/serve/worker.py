"""What each worker process of a server runs: the application, made from the folder that the processes share."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from poolexport.serve import log
from poolexport.serve.config import Limits, Settings

#: Environment variable that tells a worker where the folder is.
FOLDER = "POOLEXPORT_SERVE"
#: Files in which the metrics of a process are, and the bytes taken for each.
METRICS, RESERVED = ("counter", "gauge_livesum", "gauge_max", "histogram"), 1 << 20


@dataclass(frozen=True)
class Plan:
    """Everything that a worker has to know.

    Args:
        settings: of the server.
        repository: folder in which versions of models may appear, or empty.
        host, grpc_port: where gRPC is served; not at all where the port is 0.
        certificate, key: files for TLS, or empty.
        log_level: of the logs.
    """

    settings: Settings
    repository: str = ""
    host: str = "127.0.0.1"
    grpc_port: int = 0
    certificate: str = ""
    key: str = ""
    log_level: str = "info"

    def write(self, folder: Path) -> None:
        fields = asdict(self)
        fields["settings"]["tokens"] = [token.hex() for token in self.settings.tokens]
        (folder / "plan.json").write_text(json.dumps(fields))

    @classmethod
    def read(cls, folder: Path) -> Plan:
        fields = json.loads((folder / "plan.json").read_text())
        settings = fields["settings"]
        settings["limits"] = Limits(**settings["limits"])
        settings["tokens"] = tuple(bytes.fromhex(token) for token in settings["tokens"])
        return cls(**{**fields, "settings": Settings(**settings)})


def application() -> Any:
    """The ASGI application of this process."""
    from poolexport.serve.core import Core
    from poolexport.serve.http import Application
    from poolexport.serve.repository import Repository
    from poolexport.serve.state import Store

    folder = Path(os.environ[FOLDER])
    plan = Plan.read(folder)
    log.configure(plan.log_level)
    _reserve(folder / "metrics")
    repository = Repository(Store(folder), plan.settings, Path(plan.repository) if plan.repository else None)
    core = Core(plan.settings, repository)
    if not plan.grpc_port:
        return Application(core)
    from poolexport.serve.grpc import Endpoint, serving

    certificate, key = (Path(name) if name else None for name in (plan.certificate, plan.key))
    return Application(core, partial(serving, core, Endpoint(plan.host, plan.grpc_port, certificate, key)))


def rsgi() -> Any:
    """The same for Granian."""
    from poolexport.serve.rsgi import Front

    return Front(application())


def _reserve(folder: Path) -> None:
    """Take the room for this process's metrics now.

    They are written through mapped memory. In a file with holes, that ends the process once the disk is full.
    """
    for kind in METRICS:
        with (folder / f"{kind}_{os.getpid()}.db").open("ab") as file:
            if not file.tell():
                file.write(bytes(RESERVED))
