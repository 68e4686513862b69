"""What a server is, whatever the protocol: models, the queue before them, and whether it is ready.

HTTP and gRPC stand on this, and so does anything else that has models to run.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import hmac
import logging
from hashlib import sha256
from typing import Any

from poolexport import __version__
from poolexport.errors import RequestError
from poolexport.serve import metrics
from poolexport.serve.config import Settings
from poolexport.serve.datatypes import TensorSpec
from poolexport.serve.metrics import Statistics
from poolexport.serve.model import Model
from poolexport.serve.queueing import Engine
from poolexport.serve.repository import Repository

EXTENSIONS = ("binary_tensor_data", "model_configuration", "model_repository", "statistics")
#: Seconds between two looks at the state and two writings of the metrics.
TICK = 0.25
log = logging.getLogger("poolexport.serve")


class Core:
    """Models, the queue before them, and whether they are to be had.

    Args:
        settings: of the server.
        repository: its models.
    """

    def __init__(self, settings: Settings, repository: Repository) -> None:
        self.settings = settings
        self.repository = repository
        self.engine = Engine(settings)
        self.ready = False
        self._ticking: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Open the models; afterwards the server is ready."""
        await asyncio.to_thread(self.repository.follow)
        self._ticking = asyncio.create_task(self._tick())
        self.ready = True
        log.info("ready", extra={"facts": {"models": [f"{m.name}:{m.version}" for m in self.repository.models]}})

    async def stop(self) -> None:
        """Be ready no more, and wait for what was accepted, as long as the settings allow."""
        self.ready = False
        until = asyncio.get_running_loop().time() + self.settings.limits.drain_seconds
        while not self.engine.idle and asyncio.get_running_loop().time() < until:
            await asyncio.sleep(0.01)
        if self._ticking is not None:
            self._ticking.cancel()
        self.flush()
        self.engine.close()
        log.info("stopped")

    async def _tick(self) -> None:
        """Follow the other processes, write the metrics, and give memory back after large requests."""
        trimmed = 0
        while True:
            await asyncio.sleep(TICK)
            try:
                self.flush()
                if self.engine.idle and self.engine.runs != trimmed:
                    trimmed = self.engine.runs
                    await asyncio.to_thread(_trim)
                if self.repository.changed and await asyncio.to_thread(self.repository.follow):
                    log.info("models changed")
            except Exception:
                log.exception("the state of the server cannot be followed")

    def flush(self) -> None:
        metrics.flush([model.meter for model in self.repository.models], self.engine.waiting)

    async def load(self, name: str, parameters: Any) -> None:
        """Load a model, or load it again.

        Raises:
            RequestError: clients may not (403), or it is refused.
        """
        self._controlled()
        if parameters:
            raise RequestError(400, "models are loaded as they are in the repository; no parameters are taken")
        await asyncio.to_thread(self.repository.load, name)
        await asyncio.to_thread(self.repository.follow)
        log.info("loaded", extra={"facts": {"model": name}})

    async def unload(self, name: str) -> None:
        """Stop serving a model.

        Raises:
            RequestError: clients may not (403), or there is none.
        """
        self._controlled()
        await asyncio.to_thread(self.repository.unload, name)
        await asyncio.to_thread(self.repository.follow)
        log.info("unloaded", extra={"facts": {"model": name}})

    def _controlled(self) -> None:
        if not self.settings.control:
            raise RequestError(403, "models cannot be loaded and unloaded by clients of this server (--control)")

    def authorize(self, header: str | None) -> None:
        """Raise unless an Authorization header holds one of the tokens, where there are any.

        Raises:
            RequestError: it does not (401).
        """
        if not self.settings.tokens:
            return
        kind, _, token = (header or "").partition(" ")
        digest = sha256(token.strip().encode("utf-8", "surrogateescape")).digest()
        known = [hmac.compare_digest(digest, one) for one in self.settings.tokens]
        if kind.lower() != "bearer" or not any(known):
            raise RequestError(401, "this server wants a token: Authorization: Bearer TOKEN")

    def statistics(self, model: Model) -> Statistics:
        """What was counted for a version of a model."""
        self.flush()
        return metrics.statistics(model.name, model.version)

    def chosen(self, name: str | None, version: str | None) -> list[Model]:
        """The models that a question about statistics concerns."""
        if not name:
            return self.repository.models
        if version:
            return [self.repository.find(name, version)]
        self.repository.find(name)
        return [self.repository.find(name, one) for one in self.repository.versions(name)]


def _trim() -> None:
    """Give freed memory back to the system, where the C library would keep it."""
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def server_metadata() -> dict[str, Any]:
    """Name, version and extensions of the server."""
    return {"name": "poolexport", "version": __version__, "extensions": list(EXTENSIONS)}


def model_metadata(model: Model, versions: list[str]) -> dict[str, Any]:
    """Inputs and outputs of a model."""
    return {
        "name": model.name,
        "versions": versions,
        "platform": "onnxruntime_onnx",
        "inputs": [_tensor(tensor) for tensor in model.signature.inputs.values()],
        "outputs": [_tensor(tensor) for tensor in model.signature.outputs.values()],
    }


def _tensor(tensor: TensorSpec) -> dict[str, Any]:
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.lengths}


def model_config(model: Model, slots: int, delay: float) -> dict[str, Any]:
    """A model as the model configuration extension describes it; clients that measure want it."""
    batched = model.facts.batched

    def port(tensor: TensorSpec) -> dict[str, Any]:
        name = tensor.datatype.replace("BYTES", "STRING")
        return {"name": tensor.name, "data_type": f"TYPE_{name}", "dims": tensor.lengths[batched:]}

    config: dict[str, Any] = {
        "name": model.name,
        "platform": "onnxruntime_onnx",
        "backend": "onnxruntime",
        "max_batch_size": model.signature.limits.batch if batched else 0,
        "input": [port(tensor) for tensor in model.signature.inputs.values()],
        "output": [port(tensor) for tensor in model.signature.outputs.values()],
        "instance_group": [{"name": model.name, "kind": "KIND_CPU", "count": slots}],
        "default_model_filename": "model.onnx",
    }
    if model.together:
        config["dynamic_batching"] = {"max_queue_delay_microseconds": round(delay * 1e6)}
    return config


def model_statistics(model: Model, found: Statistics) -> dict[str, Any]:
    """Counts and times of a model, as the statistics extension writes them."""

    def duration(count: int, seconds: float) -> dict[str, int]:
        return {"count": count, "ns": round(seconds * 1e9)}

    answered = found.succeeded
    return {
        "name": model.name,
        "version": model.version,
        "last_inference": round(found.last * 1e3),
        "inference_count": found.rows,
        "execution_count": found.runs,
        "inference_stats": {
            "success": duration(answered, found.succeeded_seconds),
            "fail": duration(found.failed, 0.0),
            "queue": duration(answered, found.stages["queue"]),
            "compute_input": duration(answered, found.stages["input"]),
            "compute_infer": duration(answered, found.stages["compute"]),
            "compute_output": duration(answered, found.stages["output"]),
        },
    }


def index(repository: Repository, *, ready: bool = False) -> list[dict[str, str]]:
    """Every version of every model, and whether it is served."""
    return [
        {
            "name": entry.place.name,
            "version": entry.place.version,
            "state": "READY" if entry.ready else "UNAVAILABLE",
            "reason": entry.reason,
        }
        for entry in repository.entries
        if entry.ready or not ready
    ]
