"""``poolexport serve``: models behind the Open Inference Protocol."""

from __future__ import annotations

import ipaddress
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from poolexport.cli import _ray, _show
from poolexport.errors import InputError

if TYPE_CHECKING:
    from poolexport.serve.cluster import Entrance, Scale
    from poolexport.serve.config import Settings
    from poolexport.serve.state import Place, State

FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
TLS = "--certificate and --key"
#: Options of a server on this machine, and what does the same on a cluster.
NOT_ON_RAY = {
    "workers": "--replicas says how many processes answer",
    "metrics_port": "Ray has metrics of its own, see its dashboard",
    "header_seconds": "Ray's proxies wait as long as they do",
    "control": "run the command again, and what is served is updated",
    "certificate": "put a proxy with TLS before Ray's",
    "key": "put a proxy with TLS before Ray's",
    "front": "Ray has a server of its own",
}
#: Options of a cluster.
ON_RAY = dict.fromkeys(("replicas", "max_replicas", "replicas_per_node", "cpus", "detach"), "add --ray")


def _configured(context: click.Context, _: click.Parameter, file: Path | None) -> None:
    """Take the options in a file for the defaults."""
    if file is None:
        return
    try:
        held = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"--config {file}: it cannot be read as JSON: {error}") from error
    if not isinstance(held, dict):
        raise InputError(f"--config {file}: it must be a JSON object of options")
    measured = held.pop("measured", {})
    options = {
        option.opts[0].removeprefix("--").replace("-", "_"): option
        for option in context.command.params
        if isinstance(option, click.Option) and option.name != "config"
    }
    chosen: dict[str, Any] = {}
    for name, value in held.items():
        option = options.get(name.replace("-", "_"))
        if option is None:
            raise InputError(f"--config {file}: there is no option {name!r}{_show.near(name, sorted(options))}")
        if isinstance(value, bool) != option.is_flag or not isinstance(value, (bool, int, float, str)):
            wanted = "true or false" if option.is_flag else "a number or a text"
            raise InputError(f"--config {file}: {name!r} must be {wanted}, not {json.dumps(value)}")
        # judged as what is written on a command line is
        chosen[str(option.name)] = value if option.is_flag else str(value)
    context.default_map = {**(context.default_map or {}), **chosen}
    from poolexport.serve.config import cores

    counted = measured.get("cores") if isinstance(measured, dict) else None
    if counted not in (None, cores()):
        _show.warning(f"{file} was measured on {counted} cores, and here are {cores()}; poolexport tune measures anew")


@click.command()
@click.argument("models", nargs=-1, metavar="[NAME[:VERSION]=]PATH...")
@click.option(
    "--config",
    type=FILE,
    is_eager=True,
    expose_value=False,
    callback=_configured,
    help="File of poolexport tune; options that are given as well come first.",
)
@click.option("--repository", type=click.Path(path_type=Path), help="Folder of NAME/VERSION/model.onnx to serve, too.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option("--port", type=click.IntRange(1, 65535), default=8000, show_default=True, help="Port of HTTP.")
@click.option(
    "--grpc-port", type=click.IntRange(0, 65535), default=8001, show_default=True, help="Of gRPC; 0 for none."
)
@click.option(
    "--metrics-port",
    type=click.IntRange(0, 65535),
    default=0,
    help="Port of the Prometheus metrics, at 127.0.0.1 only; 0, the default, for none.",
)
@click.option(
    "--workers", type=click.IntRange(1, 64), default=1, show_default=True, help="Processes that share the port."
)
@click.option(
    "--slots", type=click.IntRange(0), default=0, help="Runs at a time in a process; by default its share of cores."
)
@click.option("--threads", type=click.IntRange(1, 1024), default=1, show_default=True, help="Threads of each run.")
@click.option(
    "--batching",
    type=click.Choice(["auto", "on", "off"]),
    default="auto",
    show_default=True,
    help="Run requests together that wait; auto: where it was measured to pay.",
)
@click.option(
    "--batch-rows", type=click.IntRange(0), default=0, help="Rows run together; by default up to --max-batch."
)
@click.option("--batch-delay", type=click.FloatRange(0, 1e6), default=0.0, help="Microseconds to wait for others.")
@click.option("--max-batch", type=click.IntRange(1), help="Longest dynamic first axis; 64 by default.")
@click.option("--max-body", type=click.IntRange(1), help="MiB of a request; 64 by default.")
@click.option("--queue", type=click.IntRange(0), help="Requests that may wait for each slot; 64 by default.")
@click.option("--header-seconds", type=click.FloatRange(0.1), help="For a client to send its headers; 5 by default.")
@click.option("--body-seconds", type=click.FloatRange(0.1), help="For a client to send its body; 10 by default.")
@click.option("--run-seconds", type=click.FloatRange(0.001), help="From a request to its answer; 30 by default.")
@click.option("--load-seconds", type=click.FloatRange(0.1), help="For trying a model; 30 by default.")
@click.option("--drain-seconds", type=click.FloatRange(0), help="For requests in progress at the end; 10 by default.")
@click.option("--control", is_flag=True, help="Let clients load and unload models.")
@click.option("--tokens", "token_file", type=FILE, help="File of bearer tokens, one a line; clients must show one.")
@click.option("--certificate", type=FILE, help="PEM file with the certificate for TLS; needs --key.")
@click.option("--key", type=FILE, help="PEM file with its private key.")
@click.option("--server", "front", type=click.Choice(["granian", "uvicorn"]), default="granian", show_default=True)
@click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info", show_default=True
)
@_ray.options("Serve")
@click.option("--replicas", type=click.IntRange(1), default=1, show_default=True, help="Processes on the cluster.")
@click.option("--max-replicas", type=click.IntRange(1), help="As many under load; --replicas by default.")
@click.option("--replicas-per-node", type=click.IntRange(1), help="Most of them on one machine.")
@click.option("--cpus", type=click.FloatRange(0.01), default=1.0, show_default=True, help="Processors of a replica.")
@click.option("--detach", is_flag=True, help="End once everything is served on the cluster, and leave it so.")
def serve(
    models: tuple[str, ...],
    repository: Path | None,
    host: str,
    port: int,
    grpc_port: int,
    metrics_port: int,
    workers: int,
    slots: int,
    threads: int,
    batching: Any,
    batch_rows: int,
    batch_delay: float,
    control: bool,
    token_file: Path | None,
    certificate: Path | None,
    key: Path | None,
    front: Any,
    log_level: str,
    on_ray: bool,
    ray_address: str | None,
    replicas: int,
    max_replicas: int | None,
    replicas_per_node: int | None,
    cpus: float,
    detach: bool,
    **given: Any,
) -> None:
    """Serve models over HTTP and gRPC, as the Open Inference Protocol (KServe V2) says.

    Every model is opened, run and compared with its sample by a process of its own before the port opens. Ctrl-C or
    SIGTERM ends the server once all accepted requests are answered. With --ray, the same server runs as replicas on a
    cluster; run again, the command updates them without losing a request.

    \b
    Example:
      poolexport serve build
      curl localhost:8000/v2/models/build
    """
    from poolexport.cluster import require
    from poolexport.serve import process
    from poolexport.serve.config import MIB, Limits, Settings
    from poolexport.serve.worker import Plan

    on_ray = on_ray or bool(ray_address)
    if on_ray:
        _ray.refuse(NOT_ON_RAY, "means nothing with --ray")
    else:
        _ray.refuse(ON_RAY, "is for a cluster")
    if bool(certificate) != bool(key):
        raise InputError("TLS needs both --certificate and --key")
    if not models and repository is None:
        raise InputError("there is nothing to serve; name bundles, .onnx files or a --repository")
    process.require(front, grpc=bool(grpc_port) or on_ray)
    if on_ray:
        require("serving on a cluster", "fastapi")
    from poolexport.serve.state import places

    names = {"max_batch": "batch", "max_body": "body"}
    chosen = {names.get(name, name): value for name, value in given.items() if value is not None}
    if "body" in chosen:
        chosen["body"] *= MIB
    if any(value != value for value in chosen.values()):
        raise InputError("limits are numbers, and nan is none")
    if batch_rows > (chosen.get("batch") or Limits().batch):
        raise InputError(f"--batch-rows {batch_rows} is more than a request may have; --max-batch says how many")
    settings = Settings(
        limits=Limits(**chosen),
        slots=slots,
        threads=threads,
        workers=workers,
        batching=batching,
        batch_rows=batch_rows,
        batch_delay=batch_delay / 1e6,
        control=control,
        tokens=process.tokens(token_file) if token_file else (),
    )
    if not _is_loopback(host):
        _warn(host, settings.tokens, control, "" if certificate else "a proxy with TLS" if on_ray else TLS)
    found = places(models, repository)
    if on_ray:
        from poolexport.serve.cluster import Entrance, Scale

        scale = Scale(replicas, max_replicas or replicas, replicas_per_node or 0, cpus)
        # Ray serves gRPC at every address of a machine, so it is not served unasked
        entrance = Entrance(host, port, grpc_port if _ray.given("grpc_port") else 0)
        _on_ray(found, settings, scale, entrance, ray_address or "", log_level, detach=detach)
        return
    plan = Plan(settings, str(repository or ""), host, grpc_port, str(certificate or ""), str(key or ""), log_level)

    def ready(state: State) -> None:
        _tell(state)
        scheme = "https" if certificate else "http"
        place = f"[{host}]" if ":" in host else host
        grpc = f", gRPC at {place}:{grpc_port}" if grpc_port else ""
        _show.note(f"serving at {scheme}://{place}:{port}{grpc}")

    process.serve(found, plan, process.Address(host, port, metrics_port), front, ready)


def _on_ray(
    found: list[Place],
    settings: Settings,
    scale: Scale,
    entrance: Entrance,
    address: str,
    log_level: str,
    *,
    detach: bool,
) -> None:
    from poolexport.serve import cluster

    if scale.most < scale.replicas:
        raise InputError(f"--max-replicas {scale.most} is less than --replicas {scale.replicas}")
    if entrance.grpc_port and not settings.tokens:
        _show.warning("Ray serves gRPC at every address of a machine, and anybody there may use it; add --tokens")

    def ready(state: State) -> None:
        _tell(state)
        grpc = f", gRPC at port {entrance.grpc_port}" if entrance.grpc_port else ""
        _show.note(f"serving at http://{entrance.host}:{entrance.port}{grpc}, on every machine with a replica")
        if detach:
            _show.note("it stays when this command ends; 'serve shutdown' takes Ray Serve down")

    cluster.serve(
        found,
        settings,
        scale,
        entrance,
        address=address,
        detach=detach,
        log_level=log_level,
        ready=ready,
        note=_show.note,
    )


def _tell(state: State) -> None:
    """What is known about the models that are served."""
    for entry in state.entries:
        facts = entry.facts
        replayed = "sample replayed" if facts and facts.replayed else "no sample to replay"
        verdict = (facts.verdict if facts else "") or "no verdict"
        _show.note(f"{entry.place.name}, version {entry.place.version}: {verdict}, {replayed}")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _warn(host: str, tokens: tuple[bytes, ...], control: bool, tls: str) -> None:
    """Tell what protects a server that others reach; ``tls`` says what would give it TLS, where it has none."""
    open_to = f"{host} is reached from other machines"
    if control and not tokens:
        raise InputError(f"{open_to}, and --control lets anybody there load and unload models; add --tokens")
    lacking = [option for option in ("" if tokens else "--tokens", tls) if option]
    if lacking:
        _show.warning(f"{open_to}, and anybody there may use this server; {' and '.join(lacking)} would protect it")
