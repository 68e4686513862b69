"""Starting a server: everything is tried and decided first, then the port opens, and at the end nothing is left."""

from __future__ import annotations

import errno
import importlib
import importlib.util
import os
import shutil
import signal
import socket
import ssl
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from poolexport.errors import InputError, MissingExtraError, StartError
from poolexport.serve import log
from poolexport.serve.state import Place, State, Store, first_state
from poolexport.serve.worker import FOLDER, Plan

Front = Literal["granian", "uvicorn"]
ASGI, RSGI = "poolexport.serve.worker:application", "poolexport.serve.worker:rsgi"
#: Packages that serving needs beside those of the core.
NEEDED = ("starlette", "orjson", "prometheus_client")


@dataclass(frozen=True)
class Address:
    """Where HTTP and the metrics are served; the metrics are not where their port is 0."""

    host: str = "127.0.0.1"
    port: int = 8000
    metrics_port: int = 0


def require(front: Front, *, grpc: bool) -> None:
    """Raise a MissingExtraError where a package is missing."""
    for package in (*NEEDED, front, *(("grpc",) if grpc else ())):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package, "serve", "serving")


def require_free(host: str, port: int, option: str) -> None:
    """Raise a StartError where a port cannot be had.

    Args:
        host, port: to listen at.
        option: that chose the port.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            probe.listen(1)
    except OSError as error:
        reason = "it is taken" if error.errno == errno.EADDRINUSE else error.strerror or str(error)
        raise StartError(f"port {port} of {host} cannot be had: {reason}; choose another with {option}") from error


def tokens(file: Path) -> tuple[bytes, ...]:
    """Digests of the tokens in a file, one a line.

    Raises:
        InputError: it cannot be read, or there are none in it.
    """
    try:
        lines = [line.strip() for line in file.read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the tokens in {file} cannot be read: {error}") from error
    found = tuple(sha256(line.encode()).digest() for line in lines if line and not line.startswith("#"))
    if not found:
        raise InputError(f"there is no token in {file}; write one a line")
    return found


def serve(found: Sequence[Place], plan: Plan, address: Address, front: Front = "granian", ready: Any = None) -> None:
    """Serve models until the process is told to stop.

    Args:
        found: the models.
        plan: what the workers are told.
        address: where to listen.
        front: the server that speaks HTTP.
        ready: called with the state once all models were tried, before the port opens.

    Raises:
        InputError: a model is refused.
        StartError: a port cannot be had.
    """
    require(front, grpc=bool(plan.grpc_port))
    _require_certificate(plan.certificate, plan.key)
    address = replace(address, host=_resolved(address.host))
    ports = ((address.port, "--port"), (plan.grpc_port, "--grpc-port"), (address.metrics_port, "--metrics-port"))
    for port, option in ports:
        other = next((name for number, name in ports if number == port and name != option), "")
        if port and other:
            raise InputError(f"{option} and {other} are both {port}; each needs a port of its own")
        if port:
            require_free(address.host if option != "--metrics-port" else "127.0.0.1", port, option)
    folder = Path(tempfile.mkdtemp(prefix="poolexport-serve-"))
    try:
        (folder / "metrics").mkdir()
        plan.write(folder)
        os.environ[FOLDER] = str(folder)
        # read when the metrics are imported, so it comes first
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder / "metrics")
        with ThreadPoolExecutor(1) as pool:
            # while other processes try the models; workers that are forked have it then
            pool.submit(importlib.import_module, "poolexport.serve.http")
            state = first_state(found, plan.settings)
        Store(folder).write(state)
        if ready is not None:
            ready(state)
        if address.metrics_port:
            _serve_metrics(address.metrics_port)
        (_granian if front == "granian" else _uvicorn)(plan, address)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _resolved(host: str) -> str:
    """The address that a name stands for.

    Raises:
        InputError: it stands for none.
    """
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM) if host else []
    except (OSError, UnicodeError):
        found = []
    if not found:
        raise InputError(f"--host {host!r} is no address of this machine, and no name of one")
    return str(found[0][4][0])


def _require_certificate(certificate: str, key: str) -> None:
    """Raise an InputError where TLS cannot be spoken with these files."""
    if not certificate:
        return
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
    except (OSError, ValueError) as error:
        told = getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)
        raise InputError(
            f"--certificate {certificate} and --key {key} are no certificate in PEM with its key: {told}"
        ) from error


def _serve_metrics(port: int) -> None:
    from prometheus_client import start_http_server

    from poolexport.serve.metrics import registry

    start_http_server(port, addr="127.0.0.1", registry=registry())


def _granian(plan: Plan, address: Address) -> None:
    from granian import Granian
    from granian.constants import HTTPModes, Interfaces
    from granian.errors import FatalError
    from granian.http import HTTP1Settings

    limits = plan.settings.limits
    server = Granian(
        RSGI,
        address=address.host,
        port=address.port,
        interface=Interfaces.RSGI,
        # a connection that may become HTTP/2 has no limit of time for its first bytes
        http=HTTPModes.http1,
        factory=True,
        workers=plan.settings.workers,
        websockets=False,
        http1_settings=HTTP1Settings(header_read_timeout=round(limits.header_seconds * 1e3)),
        log_dictconfig=log.dictionary(plan.log_level),
        ssl_cert=Path(plan.certificate) if plan.certificate else None,
        ssl_key=Path(plan.key) if plan.key else None,
        respawn_failed_workers=True,
        respawn_interval=0.1,
        workers_kill_timeout=round(limits.drain_seconds) + 1,
    )
    try:
        server.serve()
    except FatalError as error:
        raise StartError(f"the server could not start: {error}") from error


def _uvicorn(plan: Plan, address: Address) -> None:
    import uvicorn
    from uvicorn.supervisors import Multiprocess

    config = uvicorn.Config(
        ASGI,
        factory=True,
        host=address.host,
        port=address.port,
        workers=plan.settings.workers,
        http="httptools" if importlib.util.find_spec("httptools") else "auto",
        ws="none",
        log_config=log.dictionary(plan.log_level),
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=round(plan.settings.limits.drain_seconds),
        ssl_certfile=plan.certificate or None,
        ssl_keyfile=plan.key or None,
    )
    if plan.settings.workers == 1:
        with _signals_heard_once():
            uvicorn.Server(config).run()
        return
    listening = config.bind_socket()
    # asyncio does not set it on connections of this socket, and answers would wait 40 ms for their second half
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    Multiprocess(config, sockets=[listening]).run()


@contextmanager
def _signals_heard_once() -> Iterator[None]:
    """Let uvicorn, which raises the signal that stopped it once more, end as the other server does."""
    kept = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


__all__ = ["Address", "Front", "State", "require", "require_free", "serve", "tokens"]
