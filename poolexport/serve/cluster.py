"""Past one machine: the same application on Ray Serve.

Ray's proxies take the requests, on every machine with a replica, and pass them on; a replica is the application that
serves on one machine, in a process that Ray starts, watches and starts anew.
"""

from __future__ import annotations

import logging
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

from poolexport.cluster import Parcel, joined, packed, unpacked
from poolexport.errors import InputError, PoolExportError, StartError
from poolexport.serve import log
from poolexport.serve.config import Settings
from poolexport.serve.core import Core
from poolexport.serve.grpc import SERVICE, Servicer, add_to_server, calls
from poolexport.serve.http import Application
from poolexport.serve.repository import Repository
from poolexport.serve.state import Entry, Place, State, Still, first_state

#: What Ray knows the application and its one deployment by, and where the cluster keeps whose it is.
NAME, OWNER = "poolexport", b"poolexport:serve"
#: Requests for each slot that wait in a replica, where they can be run together; the others wait in the proxies, which
#: give them to another replica when one is lost.
HELD = 16
#: Seconds between two looks of Ray at the health of a replica, and of us at what became of the application.
HEALTH, LOOK = 2.0, 0.5
#: Seconds in which a replica that is to stop is made known to the proxies, before it waits for its last requests.
NOTICE = 2.0
#: How many more replicas there may be during an update, in percent; one at least, so that an old one stops only when a
#: new one is ready.
SURGE = 25
#: How often a replica that does not start is tried before an update is given up.
TRIES = 3


@dataclass(frozen=True)
class Scale:
    """How much of a cluster is used.

    Args:
        replicas: processes that answer; the least of them where ``most`` is larger.
        most: replicas under load.
        per_node: most of them on one machine; 0 for any number.
        cpus: that each takes, and so the runs at a time in it, unless the settings say otherwise.
    """

    replicas: int = 1
    most: int = 0
    per_node: int = 0
    cpus: float = 1.0


@dataclass(frozen=True)
class Entrance:
    """Where Ray's proxies listen, on every machine with a replica; gRPC not at all where its port is 0."""

    host: str = "127.0.0.1"
    port: int = 8000
    grpc_port: int = 0


class Replica:
    """The application in a process of the cluster.

    Args:
        models: the state that the command found, each with its files.
        settings: of the server.
        log_level: of the logs.

    Raises:
        InputError: a model is not here, is not the one that was tried, or cannot be opened here.
    """

    def __init__(self, models: Sequence[tuple[Entry, Parcel]], settings: Settings, log_level: str) -> None:
        log.configure(log_level)
        with tempfile.TemporaryDirectory(prefix="poolexport-serve-") as folder:
            entries = [_placed(entry, parcel, Path(folder, str(n))) for n, (entry, parcel) in enumerate(models)]
            repository = Repository(Still(State(1, tuple(entries))), settings)
            repository.follow()
        refused = [entry for entry in repository.entries if not entry.ready]
        if refused:
            place = refused[0].place
            raise InputError(f"{place.name}, version {place.version}, cannot be served here: {refused[0].reason}")
        self._core = Core(settings, repository)
        self._calls = {call.name: answer for call, answer in calls(Servicer(self._core))}

    def __serve_build_asgi_app__(self) -> Application:
        return Application(self._core)

    def check_health(self) -> None:
        """Raise where it is not ready; Ray asks."""
        if not self._core.ready:
            raise RuntimeError("the replica is not ready")


def _placed(entry: Entry, parcel: Parcel, folder: Path) -> Entry:
    path = str(unpacked(parcel, folder))
    assert entry.facts is not None
    return replace(entry, place=replace(entry.place, path=path), facts=replace(entry.facts, path=path))


class _Context:
    """What Ray tells about a call and takes from it, with the names that gRPC has for it."""

    def __init__(self, context: Any) -> None:
        self._context = context
        self.invocation_metadata = context.invocation_metadata

    def time_remaining(self) -> None:
        """Ray passes no deadline of the client on."""

    async def abort(self, code: Any, details: str) -> None:
        self._context.set_code(code)
        self._context.set_details(details)
        raise RuntimeError(details)


def _through_ray(call: Any) -> Callable[..., Any]:
    """The method of a replica that Ray's proxy for gRPC asks for, by the name of the call."""

    async def unary(self: Replica, request: bytes, grpc_context: Any) -> Any:
        return await self._calls[call.name](request, _Context(grpc_context))

    async def stream(self: Replica, request: AsyncIterator[bytes], grpc_context: Any) -> AsyncIterator[Any]:
        async for answer in self._calls[call.name](request, _Context(grpc_context)):
            yield answer

    return stream if call.server_streaming else unary


for _call in SERVICE.methods:
    setattr(Replica, _call.name, _through_ray(_call))


def options(settings: Settings, scale: Scale) -> dict[str, Any]:
    """What Ray is told about the deployment.

    Args:
        settings: with the number of slots in a replica.
        scale: of the deployment.
    """
    slots, limits = settings.runs_at_a_time, settings.limits
    most = max(scale.most, scale.replicas)
    held = min(limits.queue, HELD)
    found: dict[str, Any] = {
        "ray_actor_options": {"num_cpus": scale.cpus},
        "max_ongoing_requests": slots * (1 + held),
        "max_queued_requests": max(1, most * slots * (limits.queue - held)),
        "backpressure_config": {"retry_after_s": 1},
        "graceful_shutdown_wait_loop_s": NOTICE,
        "graceful_shutdown_timeout_s": NOTICE + limits.drain_seconds,
        "health_check_period_s": HEALTH,
        "max_surge_percent": SURGE,
        "max_constructor_retry_count": TRIES,
        "logging_config": {"enable_access_log": False},
    }
    if scale.per_node:
        found["max_replicas_per_node"] = scale.per_node
    if most > scale.replicas:
        found["autoscaling_config"] = {
            "min_replicas": scale.replicas,
            "max_replicas": most,
            "target_ongoing_requests": 2 * slots,
        }
    else:
        found["num_replicas"] = scale.replicas
    return found


def in_replica(settings: Settings, scale: Scale) -> Settings:
    """The settings of one replica: as many slots as it has processors, unless a number was named."""
    return replace(settings, slots=settings.slots or max(1, round(scale.cpus)), workers=1)


def serve(
    found: Sequence[Place],
    settings: Settings,
    scale: Scale,
    entrance: Entrance,
    *,
    address: str = "",
    detach: bool = False,
    log_level: str = "info",
    ready: Callable[[State], None] = lambda state: None,
    note: Callable[[str], None] = lambda text: None,
) -> None:
    """Serve models on a Ray cluster until the process is told to stop, or only begin to where it is to detach.

    What is served already is updated: old replicas answer until new ones are ready. The command that served it before
    ends then, and leaves it to this one.

    Args:
        found: the models.
        settings: of each replica.
        scale: of the deployment.
        entrance: where the proxies listen.
        address: of the cluster; see ``poolexport.cluster.joined``.
        detach: return once everything is served, and leave it so.
        log_level: of the replicas' logs.
        ready: called with the state once all models are served.
        note: called with what there is to know meanwhile.

    Raises:
        InputError: a model is refused.
        StartError: there is no cluster, its proxies listen elsewhere, or the replicas do not start.
    """
    settings = in_replica(settings, scale)
    state = first_state(found, settings)
    with joined(address, alone=not detach) as own, _ended_by(signal.SIGTERM):
        if own:
            note("there is no Ray cluster here; one of this machine alone was started")
        _open(entrance, settings)
        updating = _application() is not None
        try:
            _deploy(state, settings, scale, log_level, note)
            _settled(note)
        except (PoolExportError, KeyboardInterrupt):
            if updating:
                note("replicas of the update that did start go on, and so do old ones")
            else:
                _take_down()
            raise
        mine = _own()
        ready(state)
        if detach:
            return
        try:
            while _is_served(mine):
                time.sleep(LOOK)
        except KeyboardInterrupt:
            _take_down()
        else:
            note("another command has taken over what is served, or has taken it down")


@contextmanager
def _ended_by(kind: signal.Signals) -> Iterator[None]:
    """Have a signal do what Ctrl-C does."""
    before = signal.signal(kind, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(kind, before)


def _open(entrance: Entrance, settings: Settings) -> None:
    """Start Ray Serve, or see that it listens where it should."""
    import ray
    from ray import serve
    from ray.serve.context import _get_global_client

    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    limits = settings.limits
    seconds = limits.body_seconds + limits.run_seconds
    grpc = {
        "port": entrance.grpc_port,
        "grpc_servicer_functions": [f"{add_to_server.__module__}.{add_to_server.__name__}"],
        "request_timeout_s": seconds,
    }
    try:
        serve.start(
            http_options={"host": entrance.host, "port": entrance.port, "request_timeout_s": seconds},
            grpc_options=grpc if entrance.grpc_port else None,
            logging_config={"enable_access_log": False},
        )
    except Exception as error:  # errors of its actors, of many classes
        raise StartError(f"Ray Serve does not start at port {entrance.port}: {_end(str(error))}") from error
    # options of a Serve that runs already are ignored, with no error
    client = _get_global_client()
    http, other = client.http_config, ray.get(client._controller.get_grpc_config.remote())
    grpc_port = other.port if other.grpc_servicer_functions else 0
    if (http.host, http.port, grpc_port) != (entrance.host, entrance.port, entrance.grpc_port):
        told = f"--host {http.host} --port {http.port}" + (f" --grpc-port {grpc_port}" if grpc_port else "")
        raise StartError(
            f"Ray Serve runs on this cluster already, and its addresses stay as they are: {told}; "
            "give the same, or end it with 'serve shutdown'"
        )


def _deploy(state: State, settings: Settings, scale: Scale, log_level: str, note: Callable[[str], None]) -> None:
    from ray import serve

    models = [(entry, packed(Path(entry.place.path))) for entry in state.entries]
    for entry, parcel in models:
        if not parcel.contents:
            note(f"{entry.place.name} is too large to travel: every machine has to have it at {parcel.path}")
    deployment = serve.deployment(serve.ingress()(Replica)).options(name=NAME, **options(settings, scale))
    target = serve.RunTarget(deployment.bind(models, settings, log_level), name=NAME, route_prefix="/")
    try:
        serve.run_many([target], wait_for_applications_running=False)
    except Exception as error:  # errors of the controller, of many classes
        raise StartError(f"Ray Serve does not take it: {_end(str(error))}") from error


def _application() -> Any:
    """What Ray says about the application; None where there is none, or Ray Serve has ended."""
    from ray import serve
    from ray.exceptions import RayError
    from ray.serve.exceptions import RayServeException

    try:
        return serve.status().applications.get(NAME)
    except (RayError, RayServeException):
        return None


def _settled(note: Callable[[str], None]) -> None:
    """Wait until all replicas are there, and proxies before them."""
    from ray import serve

    told = ""
    while True:
        found = _application()
        if found is None:
            raise StartError("another command has taken the application down")
        messages = [one.message for one in found.deployments.values() if one.message]
        if found.status == "RUNNING" and "STARTING" not in serve.status().proxies.values():
            return
        if found.status in ("DEPLOY_FAILED", "UNHEALTHY"):
            raise StartError(f"the replicas do not start: {_end(messages[0] if messages else found.message)}")
        if messages and messages[0] != told:
            told = messages[0]
            note(_end(told))
        time.sleep(LOOK)


def _own() -> bytes:
    """Tell the cluster that what is served is this command's; by what it can be told."""
    from ray.experimental.internal_kv import _internal_kv_put

    mine = uuid4().bytes
    _internal_kv_put(OWNER, mine, overwrite=True)
    return mine


def _is_served(mine: bytes) -> bool:
    """Whether the application is there, and no other command's."""
    from ray.experimental.internal_kv import _internal_kv_get

    return _application() is not None and _internal_kv_get(OWNER) == mine


def _take_down() -> None:
    """End the application, and Ray Serve where nothing else is served."""
    from ray import serve

    serve.delete(NAME)
    if not serve.status().applications:
        serve.shutdown()


def _end(text: str) -> str:
    """The last line of an error, which says what is wrong."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), text)
