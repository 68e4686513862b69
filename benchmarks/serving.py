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
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
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
from serving_goals import BARE  # noqa: E402
from serving_processes import adopt_orphans, end_everything  # noqa: E402
from serving_rows import Row  # noqa: E402
from serving_servers import CONCURRENCY, Measurement, Running, Sample, bare, measured, started  # noqa: E402

from methods import machine  # noqa: E402
from processes import environment  # noqa: E402

ENVIRONMENTS = ROOT / ".venv-bench"
RESULTS = Path(__file__).parent / "results" / "serving.json"
#: What a load takes beside its seconds: checks, and the start of the client.
BESIDE = 0.25
#: Seconds to start and stop a server, somebody else's and one of ours.
BEFORE_AND_AFTER = (7, 2)
#: Loads for the model alone.
BARE_RUNS = 4
#: Times that our default server is started on the model that is nearly free.
STARTS = 3
#: Cores that others keep busy, from which a figure is not to be trusted.
NOISY = 0.2


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Args:
        rounds: over all rows.
        seconds: of every load.
        minutes: that all of it may take.
        grpc_client: that asks over gRPC.
    """

    rounds: int
    seconds: int
    minutes: float
    grpc_client: str


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
                    folder = self.folder / f"{self.sample.bundle.name}-{len(self.starts)}"
                    found = self._started(row, folder)
                    self.servers[contender.name] = found
                    self.starts[contender.name].append(found.server.seconds)
                found.server.pause()
            except RuntimeError as error:
                self.invalid |= {one.name: str(error) for one in self.rows if one.server == contender}

    def _started(self, row: Row, folder: Path) -> Running:
        """A server, at the second attempt if need be: some give up soon on a busy machine."""
        python = self.pythons[row.server.name]
        try:
            return started(row.server, python, row.payload, self.sample, folder)
        except RuntimeError:
            return started(row.server, python, row.payload, self.sample, folder)

    def round(self, plan: Plan, progress: Any) -> None:
        """Bare runs, then all rows, in the other direction every second time."""
        progress(BARE)
        found = {BARE: bare(self.sample, plan.seconds)}
        for row in self.rows if len(self.rounds) % 2 == 0 else self.rows[::-1]:
            progress(row.name)
            if row.name in self.invalid:
                continue
            running = self.servers[row.server.name]
            running.server.resume()
            try:
                found[row.name], wrong = measured(running, row.payload, plan.seconds, plan.grpc_client)
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
        rounds = {key: [one[key] for one in map(rounded, found)] for key in ("rps", "p50", "p99")}
        ratio = statistics.median(one["rps"] / limit for one, limit in zip(found, best))
        return {**rounded(medians), "of_bare": round(ratio, 4), "rounds": rounds}


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


def compared(
    rows: Sequence[Row], names: Sequence[str], plan: Plan, pythons: dict[str, Path | str], console: Console
) -> dict[str, Any]:
    """The report of every model."""
    servers = {row.server: None for row in rows}
    loads = len(names) * plan.rounds * (len(rows) * len(CONCURRENCY) + BARE_RUNS)
    starts = len(names) * sum(BEFORE_AND_AFTER[server.ours] for server in servers)
    expected = (loads * (plan.seconds + BESIDE) + starts) / 60
    console.print(f"{loads} loads on {len(servers)} servers: about {expected:.0f} minutes, at most {plan.minutes:g}")
    begin = time.time()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="serve-") as folder, nothing_left(), Progress(console=console) as bar:
        task = bar.add_task("", total=len(names) * (len(servers) + plan.rounds * (len(rows) + 1)))
        for name in names:
            run = Run(rows, pythons, Sample.made(name, Path(folder)), Path(folder))

            def progress(what: str, name: str = name) -> None:
                bar.update(task, advance=1, description=f"{name}: {what}")

            now = time.time()
            until = now + (begin + 60 * plan.minutes - now) / (len(names) - len(results))
            try:
                run.start(progress)
                for number in range(plan.rounds):
                    at = time.time()
                    run.round(plan, progress)
                    if number + 1 < plan.rounds and 2 * time.time() - at > until:
                        console.print(f"{name}: {number + 1} of {plan.rounds} rounds took all of the time")
                        break
                results[name] = run.report()
            finally:
                run.stop()
    return results


def noise(results: dict[str, Any]) -> dict[str, float]:
    """Cores that others kept busy during loads: the median, and the most."""
    rows = [row for found in results.values() for row in found.values()]
    others = [load["others"] for row in rows for load in row.get("loads", {}).values()]
    return {"median": round(statistics.median(others), 3), "most": round(max(others), 3)}


@click.command(help=__doc__)
@click.option("--only", multiple=True, metavar="WORD", help="Rows whose names hold this word; several times for more.")
@click.option("--model", "names", multiple=True, type=click.Choice(models.MODELS), default=models.MODELS)
@click.option("--rounds", type=click.IntRange(1), default=4, show_default=True)
@click.option("--seconds", type=click.IntRange(1), default=1, show_default=True, help="Of every load.")
@click.option("--minutes", default=12.0, show_default=True, help="No round begins that would end later.")
@click.option("--grpc-client", type=click.Choice(["h2load", "tritonclient"]), default="h2load", show_default=True)
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), help="Where to write the results.")
def main(only: Sequence[str], names: Sequence[str], output: Path | None, **options: Any) -> None:
    torch.set_num_threads(1)
    plan = Plan(**options)
    rows = chosen(only)
    needed = {"wrk", *(["h2load"] if plan.grpc_client == "h2load" and any(r.payload == "gRPC" for r in rows) else [])}
    if missing := sorted(name for name in needed if not clients.available(name)):
        raise click.ClickException(f"{' and '.join(missing)} must be installed (Debian: wrk, nghttp2-client)")
    console = Console(width=None if sys.stdout.isatty() else 150)
    servers = list({row.server: None for row in rows})
    pythons = {
        server.name: environment(ENVIRONMENTS / server.slug, server.packages) if server.packages else sys.executable
        for server in servers
    }
    begin, load_before = time.time(), os.getloadavg()
    results = compared(rows, names, plan, pythons, console)
    report = {
        "options": {**asdict(plan), "minutes": round((time.time() - begin) / 60, 1)},
        "machine": machine(),
        "versions": {
            server.name: serving_rows.versions(pythons[server.name], server.packages)
            for server in servers
            if server.packages
        },
        "load_average": {"before": load_before, "after": os.getloadavg()},
        "others": noise(results),
        "models": results,
        "goals": [asdict(goal) for goal in serving_goals.judged(results)],
    }
    for name, found in results.items():
        console.print(table(name, found))
    console.print(serving_goals.table(serving_goals.judged(results)))
    console.print("{minutes} minutes; ".format(**report["options"]), end="")
    console.print("others kept {median} cores busy in the median load, {most} at most".format(**report["others"]))
    target = output or (None if only or set(names) != set(models.MODELS) else RESULTS)
    if target is not None:
        aside = target.with_suffix(".partial")
        aside.write_text(json.dumps(report, indent=1) + "\n")
        aside.replace(target)
    if any("invalid" in row for found in results.values() for row in found.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
