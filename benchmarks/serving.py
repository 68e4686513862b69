"""What serving costs: our server beside six others, on the same two models, asked by clients nobody here wrote.

    python benchmarks/serving.py                          # everything; writes benchmarks/results/serving.json
    python benchmarks/serving.py --only granian --model net    # rows whose names hold a word; prints, writes nothing

All servers are started first, and stand still while another is measured. In every round all rows take turns, after the
model alone, without a server. What counts are medians over the rounds, and ratios to the bare runs of the same round.
Every answer is compared before and after; a wrong one, or one that is an error, makes the row invalid, and the exit
code 1. Needs wrk, and h2load (of nghttp2-client) unless gRPC is asked by tritonclient. Each peer gets an environment in
.venv-bench, once.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import serving_clients as clients  # noqa: E402
import serving_goals  # noqa: E402
import serving_models as models  # noqa: E402
import serving_rows  # noqa: E402
from serving_payloads import GRPC, Payload, asked_over_grpc, framed, image, payloads  # noqa: E402
from serving_processes import Server, Watch, adopt_orphans, end_everything  # noqa: E402
from serving_rows import Contender, Row  # noqa: E402

from methods import machine  # noqa: E402
from poolexport import tolerance  # noqa: E402
from processes import environment, free_ports  # noqa: E402

ENVIRONMENTS = ROOT / ".venv-bench"
RESULTS = Path(__file__).parent / "results" / "serving.json"
CONCURRENCY = (1, 8, 32)
#: Requests whose answers are compared before and after every load.
ASKED = 3
BARE = "onnxruntime alone"
#: What a load takes beside its seconds: checks, and the start of the client.
BESIDE = 0.25
#: Seconds to start and stop a server, somebody else's and one of ours.
BEFORE_AND_AFTER = (7, 2)
#: Loads for the model alone.
BARE_RUNS = 4
#: Times that our default server is started on the model that is nearly free.
STARTS = 3
#: Variables that say where servers may write.
HOMES = ("TMPDIR", "BENTOML_HOME", "PYTRITON_HOME", "RAY_TMPDIR")
VARIABLES = {"OMP_NUM_THREADS": "1", "NO_COLOR": "1", "BENTOML_DO_NOT_TRACK": "true", "RAY_USAGE_STATS_ENABLED": "0"}
#: Cores that others keep busy, from which a figure is not to be trusted.
NOISY = 0.2
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
        found[concurrency] = {
            "rps": load.requests / load.seconds,
            "p50": load.p50,
            "p99": load.p99,
            "cpu_ms": used / load.requests * 1e3,
            "others": watch.others(),
        }
    return found, wrong or running.check(form)[0]


def bare(sample: Sample, seconds: int) -> dict[int, Measurement]:
    """onnxruntime alone: one run at a time, and as many as there may be, with the batch that is best."""
    watch = Watch()
    script = str(serving_rows.SCRIPTS / "bare.py")
    words = [sys.executable, script, str(sample.bundle / "model.onnx"), str(seconds)]
    found = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
    others = watch.others()
    return {c: {**found["one" if c == 1 else "best"], "others": others} for c in CONCURRENCY}


class Run:
    """All rows of one model.

    Args:
        rows: to be measured.
        pythons: of every server's environment.
        sample: the model.
        folder: for logs.
    """

    def __init__(self, rows: Sequence[Row], pythons: dict[str, Path | str], sample: Sample, folder: Path) -> None:
        self.rows, self.pythons, self.sample, self.folder = rows, pythons, sample, folder
        self.servers: dict[str, Running] = {}
        self.rounds: list[dict[str, dict[int, Measurement]]] = []
        self.invalid: dict[str, str] = {}
        self.loaded: dict[str, dict[str, float]] = {}
        self.starts: dict[str, list[float]] = {}

    def start(self, progress: Any) -> None:
        for row in self.rows:
            contender = row.server
            if contender.name in self.starts:
                continue
            progress(f"starting {contender.name}")
            self.starts[contender.name] = []
            repeats = STARTS if contender == serving_rows.OWN[0] and self.sample.bundle.name == "free" else 1
            try:
                for _ in range(repeats):
                    if contender.name in self.servers:
                        self.servers.pop(contender.name).server.stop(contender.grace)
                    # short, for the names of sockets are
                    folder = self.folder / f"{self.sample.bundle.name}-{contender.slug}"
                    found = started(contender, self.pythons[contender.name], row.payload, self.sample, folder)
                    self.servers[contender.name] = found
                    self.starts[contender.name].append(found.server.seconds)
                found.server.pause()
            except RuntimeError as error:
                self.invalid |= {one.name: str(error) for one in self.rows if one.server == contender}

    def round(self, seconds: int, grpc: str, progress: Any) -> None:
        """Bare runs, then all rows, in the other direction every second time."""
        progress(BARE)
        found = {BARE: bare(self.sample, seconds)}
        for row in self.rows if len(self.rounds) % 2 == 0 else self.rows[::-1]:
            progress(row.name)
            if row.name in self.invalid:
                continue
            running = self.servers[row.server.name]
            running.server.resume()
            try:
                found[row.name], wrong = measured(running, row.payload, seconds, grpc)
            except (RuntimeError, subprocess.TimeoutExpired) as error:
                wrong = str(error)
            if wrong:
                self.invalid[row.name] = wrong
            self.loaded[row.server.name] = running.server.memory()
            running.server.pause()
        self.rounds.append(found)

    def stop(self) -> None:
        grace = {row.server.name: row.server.grace for row in self.rows}
        while self.servers:
            name, running = self.servers.popitem()
            running.server.stop(grace[name])

    def report(self) -> dict[str, Any]:
        """Medians over the rounds, and what was measured once."""
        rows: dict[str, Any] = {}
        for name in (BARE, *(row.name for row in self.rows)):
            if name in self.invalid:
                rows[name] = {"invalid": self.invalid[name]}
                continue
            rows[name] = {"loads": {c: self._medians(name, c) for c in CONCURRENCY}}
        for row in self.rows:
            if row.name not in self.invalid:
                server = row.server.name
                starts = [round(seconds, 2) for seconds in self.starts[server]]
                rows[row.name] |= {
                    "starts": starts,
                    "idle": rounded(self.servers[server].idle),
                    "loaded": rounded(self.loaded[server]),
                }
        return rows

    def _medians(self, name: str, concurrency: int) -> dict[str, Any]:
        found = [one[name][concurrency] for one in self.rounds]
        best = [one[BARE][CONCURRENCY[-1]]["rps"] for one in self.rounds]
        medians = {key: statistics.median(one[key] for one in found) for key in found[0]}
        ratio = statistics.median(one["rps"] / limit for one, limit in zip(found, best))
        return {**rounded(medians), "of_bare": round(ratio, 4), "rounds": [round(one["rps"], 1) for one in found]}


def rounded(found: dict[str, float]) -> dict[str, float]:
    return {key: float(f"{value:.4g}") for key, value in found.items()}


def chosen(only: Sequence[str]) -> list[Row]:
    """The rows whose names hold any of these words, or all.

    Raises:
        click.BadParameter: a word is in no name.
    """
    rows = serving_rows.rows()
    for word in only:
        if not any(word.lower() in row.name.lower() for row in rows):
            raise click.BadParameter(f"no row has {word!r} in its name; there are: {'; '.join(r.name for r in rows)}")
    return [row for row in rows if not only or any(word.lower() in row.name.lower() for word in only)]


@contextlib.contextmanager
def nothing_left() -> Iterator[None]:
    """Whatever happens, all that was started ends."""
    adopt_orphans()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        yield
    finally:
        end_everything()


def table(name: str, rows: dict[str, Any]) -> Table:
    """The figures of one model."""
    found = Table(title=f"{name}: requests/s, p50 and p99 in ms at {CONCURRENCY} clients", title_justify="left")
    for column in ("", "requests/s", "of bare", "p50", "p99", "CPU ms", "PSS MB idle, loaded", "start s"):
        found.add_column(column, justify="left" if not column else "right")
    found.caption = f"* others kept more than {NOISY} cores busy in most rounds of a load"
    for title, row in rows.items():
        if "invalid" in row:
            found.add_row(title, f"[red]INVALID[/]: {row['invalid'][:60]}")
            continue
        loads = list(row["loads"].values())
        found.add_row(
            f"{title} *" if any(load["others"] > NOISY for load in loads) else title,
            " / ".join(f"{load['rps']:.0f}" for load in loads),
            f"{loads[-1]['of_bare']:.2f}",
            *(" / ".join(f"{load[key]:.1f}" for load in loads) for key in ("p50", "p99")),
            f"{loads[1]['cpu_ms']:.2f}",
            f"{row['idle']['pss']:.0f}, {row['loaded']['pss']:.0f}" if "idle" in row else "",
            f"{statistics.median(row['starts']):.1f}" if "starts" in row else "",
        )
    return found


@click.command(help=__doc__)
@click.option("--only", multiple=True, metavar="WORD", help="Rows whose names hold this word; several times for more.")
@click.option("--model", "names", multiple=True, type=click.Choice(models.MODELS), default=models.MODELS)
@click.option("--rounds", type=click.IntRange(1), default=4, show_default=True)
@click.option("--seconds", type=click.IntRange(1), default=1, show_default=True, help="Of every load.")
@click.option("--grpc-client", type=click.Choice(["h2load", "tritonclient"]), default="h2load", show_default=True)
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), help="Where to write the results.")
def main(
    only: Sequence[str], names: Sequence[str], rounds: int, seconds: int, grpc_client: str, output: Path | None
) -> None:
    torch.set_num_threads(1)
    rows = chosen(only)
    needed = {"wrk"} | ({grpc_client} & {"h2load"} if any(row.payload == "gRPC" for row in rows) else set())
    if missing := sorted(name for name in needed if not clients.available(name)):
        raise click.ClickException(f"{' and '.join(missing)} must be installed (Debian: wrk, nghttp2-client)")
    console = Console(width=None if sys.stdout.isatty() else 150)
    pythons = {
        server.name: environment(ENVIRONMENTS / server.slug, server.packages) if server.packages else sys.executable
        for server in {row.server: None for row in rows}
    }
    begin, load_before = time.time(), os.getloadavg()
    servers = list({row.server: None for row in rows})
    loads = len(names) * rounds * (len(rows) * len(CONCURRENCY) + BARE_RUNS)
    starts = len(names) * sum(BEFORE_AND_AFTER[server.ours] for server in servers)
    minutes = (loads * (seconds + BESIDE) + starts) / 60
    console.print(f"{loads} loads of {seconds} s on {len(servers)} servers: about {minutes:.0f} minutes")
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="serve-") as folder, nothing_left(), Progress(console=console) as bar:
        task = bar.add_task("", total=len(names) * (len(servers) + rounds * (len(rows) + 1)))
        for name in names:
            run = Run(rows, pythons, Sample.made(name, Path(folder)), Path(folder))

            def progress(what: str, name: str = name) -> None:
                bar.update(task, advance=1, description=f"{name}: {what}")

            try:
                run.start(progress)
                for _ in range(rounds):
                    run.round(seconds, grpc_client, progress)
                results[name] = run.report()
            finally:
                run.stop()
    minutes = (time.time() - begin) / 60
    for name, found in results.items():
        console.print(table(name, found))
    goals = serving_goals.judged(results)
    console.print(serving_goals.table(goals))
    others = [
        load["others"] for found in results.values() for row in found.values() for load in row.get("loads", {}).values()
    ]
    noise = {"median": round(statistics.median(others), 3), "most": round(max(others), 3)}
    console.print(
        f"{minutes:.1f} minutes; others kept {noise['median']:.2f} cores busy in the median load, "
        f"{noise['most']:.2f} at most"
    )
    target = output or (None if only or set(names) != set(models.MODELS) else RESULTS)
    if target is not None:
        report = {
            "options": {"rounds": rounds, "seconds": seconds, "grpc_client": grpc_client, "minutes": round(minutes, 1)},
            "machine": machine(),
            "versions": {
                server.name: serving_rows.versions(pythons[server.name], server.packages)
                for server in servers
                if server.packages
            },
            "load_average": {"before": load_before, "after": os.getloadavg()},
            "others": noise,
            "models": results,
            "goals": [asdict(goal) for goal in goals],
        }
        aside = target.with_suffix(".partial")
        aside.write_text(json.dumps(report, indent=1) + "\n")
        aside.replace(target)
    if any("invalid" in row for found in results.values() for row in found.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
