"""``poolexport tune``: the quickest way of serving a model on this machine."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click

from poolexport.cli import _show
from poolexport.cli._progress import progress
from poolexport.errors import InputError, OutputError

FILE = click.Path(path_type=Path)


@click.command()
@click.argument("model", type=FILE)
@click.option("-o", "--out", type=FILE, help="File for the result; for poolexport serve --config.")
@click.option("--inputs", type=FILE, help=".npz with the arrays to ask with; else a row of the bundle's sample.")
@click.option(
    "--clients",
    type=click.IntRange(1, 1024),
    default=8,
    show_default=True,
    help="Requests at a time; 1 looks for the quickest answers.",
)
@click.option("--p99", type=click.FloatRange(0), default=0.0, help="Milliseconds that 99 of 100 requests may take.")
@click.option("--seconds", type=click.FloatRange(0.1), default=2.0, show_default=True, help="For each measurement.")
@click.option("--threads", metavar="NUMBERS", help="Threads of a run to choose from, as in 1,2,4.")
@click.option("--workers", metavar="NUMBERS", help="Processes to choose from.")
@click.option("--batch", metavar="NUMBERS", help="Rows run together to choose from; 1 for none.")
@click.option("--force", is_flag=True, help="Overwrite the file of an earlier result.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def tune(
    model: Path,
    out: Path | None,
    inputs: Path | None,
    clients: int,
    p99: float,
    seconds: float,
    threads: str | None,
    workers: str | None,
    batch: str | None,
    force: bool,
    as_json: bool,
) -> None:
    """Measure how a model is served best on this machine.

    Servers with every number of threads, processes and rows run together are started one after the other and asked as
    fast as they answer. The way that answers most requests is written down for ``poolexport serve --config``; of ways
    that are equally good, the simplest.

    \b
    Example:
      poolexport tune build -o serve.json
      poolexport serve build --config serve.json
    """
    from poolexport import disk
    from poolexport.serve import process, tuning

    if seconds != seconds or p99 != p99:
        raise InputError("--seconds and --p99 are numbers, and nan is none")
    process.require("granian", grpc=False)
    if out is not None:
        disk.require_folder(out)
        if out.exists() and not (force and out.is_file()):
            raise OutputError(f"{out} exists; choose another path, or overwrite a file with --force")
    with _ended_by_signals(), progress() as report:
        found = tuning.tune(
            model,
            inputs=inputs,
            clients=clients,
            seconds=seconds,
            p99=p99 / 1e3,
            threads=_numbers("--threads", threads),
            workers=_numbers("--workers", workers),
            batches=_numbers("--batch", batch),
            progress=report,
        )
    document = found.document()
    if out is not None:
        try:
            disk.replace(out, (json.dumps(document, indent=2) + "\n").encode())
        except OSError as error:
            raise OutputError(f"{out} could not be written: {error.strerror or error}") from error
    if as_json:
        _show.document(document)
        return
    rows = [
        (
            "best" if result is found.best else "",
            str(result.way.workers),
            str(result.way.slots),
            str(result.way.threads),
            str(result.way.batch),
            f"{result.rate:.0f}",
            f"{1e3 * result.percentile(50):.2f}",
            f"{1e3 * result.percentile(99):.2f}",
        )
        for result in found.results
    ]
    names = ("", "processes", "runs in each", "threads of a run", "rows together", "requests/s", "p50 ms", "p99 ms")
    _show.out(_show.table(names, rows, right=names[1:]))
    options = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in found.best.way.options.items())
    command = f"poolexport serve {model} " + (f"--config {out}" if out else options)
    _show.line(command)


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let signals end the command from the inside, so that the servers that are measured end as well."""
    kept = {
        number: signal.signal(number, lambda told, _: sys.exit(128 + told))
        for number in (signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def _numbers(option: str, text: str | None) -> Sequence[int] | None:
    if text is None:
        return None
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) for part in parts):
        raise InputError(f"{option} {text}: write whole numbers from 1 on, with commas between them, as in 1,2,4")
    return sorted({int(part) for part in parts})
