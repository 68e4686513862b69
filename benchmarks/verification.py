"""What a verdict costs: time and memory of ``poolexport verify``, and of finding a planted fault in a deep network.

    python benchmarks/verification.py                    # everything; writes benchmarks/results/verification.json
    python benchmarks/verification.py --only softpool    # prints, writes nothing
    python benchmarks/verification.py --only softpool --update    # replaces one row of the results

Every figure is that of a fresh process, from its start to its end: imports, reading the model and the file, and all
checks that the command line makes by default. In each of several rounds all rows take turns; times are medians, and
memory is the largest of all rounds. Besides, the network is built and run once by torch alone, for its own footprint.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from rich.progress import track
from torch import Tensor, nn

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from serving_processes import machine_seconds  # noqa: E402
from whole_models import highest, peak  # noqa: E402

import poolexport  # noqa: E402
import poolexport_models  # noqa: E402
from methods import machine  # noqa: E402
from poolexport.proof.locate import locate  # noqa: E402
from poolexport_models import zoo  # noqa: E402
from poolexport_models.data import digits  # noqa: E402
from proof.faults import plant  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "verification.json"
ROUNDS = 3
THREADS = 2
#: Reference networks with trained weights, by the method in them.
DIGITS = ("average", "attention", "isqrt_cov", "lip", "median", "s3pool", "softpool", "spp")


#: What a user has beside a file: the module that builds the network, the same one in every process.
ZOO = """import torch
from poolexport_models import zoo


def build():
    torch.manual_seed(0)
    return zoo.network("{}").build()
"""
TRAINED = """import poolexport_models


def build():
    return poolexport_models.load("{}").eval()
"""
#: The command line, which ends its process; what it found is in its report.
VERIFY = """import sys
from pathlib import Path

from poolexport.cli import main

try:
    main()
finally:
    sys.stdout.flush()
    print(Path("/proc/self/status").read_text())
"""


@dataclass(frozen=True)
class Row:
    """What is measured.

    Args:
        network: of the zoo, or of a checkpoint.
        part: what is done with it: "verify" or "locate".
        goal: seconds that it may take.
    """

    network: str
    part: str
    goal: float

    def model(self) -> nn.Module:
        """The network, the same one in every process."""
        if self.network in zoo.NETWORKS:
            torch.manual_seed(0)
            return zoo.network(self.network).build()
        return poolexport_models.load(self.network).eval()

    def inputs(self) -> tuple[tuple[Tensor, ...], Any]:
        """One image for a network of the zoo, two for a checkpoint; and which axes are dynamic."""
        if self.network in zoo.NETWORKS:
            network = zoo.network(self.network)
            return network.sample(1), network.axes
        return (digits().test_images[:2],), {0: "N"}


ROWS = {
    "resnet18": Row("resnet18", "verify", 60.0),
    **{name: Row(name, "verify", 5.0) for name in DIGITS},
    "resnet50, planted": Row("resnet50", "locate", 120.0),
}


def exported(row: Row, folder: Path) -> None:
    """Write the bundle, and the module that the command line builds the network from."""
    model, (inputs, axes) = row.model(), row.inputs()
    bundle = poolexport.export(model, inputs, folder / row.network, dynamic_shapes=axes, verify=False)
    if row.part == "locate":
        # One bit of one weight, halfway through the network.
        content = bundle.model.read_bytes()
        planted = plant(content, "one_bit", 26)
        assert planted is not None
        (folder / "wrong.onnx").write_bytes(planted.content)
        (folder / "guilty").write_text(planted.path)
    made = ZOO if row.network in zoo.NETWORKS else TRAINED
    (folder / f"{row.network}.py").write_text(made.format(row.network))


def located(row: Row, folder: Path) -> dict[str, Any]:
    """The layers to blame, on the example."""
    found = locate(folder / "wrong.onnx", row.model(), row.inputs()[0])
    named = [culprit.path for culprit in found.culprits]
    assert named == [(folder / "guilty").read_text()], f"named {named}"
    return {"result": f"named {named[0]}", "checks": len(found.steps)}


def in_torch(row: Row, folder: Path) -> dict[str, Any]:
    """Build and run once."""
    model, (inputs, _) = row.model(), row.inputs()
    with torch.no_grad():
        model(*inputs)
    return {"weights_mb": round(sum(x.numel() * x.element_size() for x in model.state_dict().values()) / 1e6, 1)}


PARTS = {"locate": located, "torch": in_torch, "export": exported}


def process(part: str, names: Sequence[str], folder: Path, threads: int) -> dict[str, Any]:
    """Do something in a fresh process: what it found, its time, its memory, and how many cores others kept busy."""
    report = folder / "report.json"
    if part == "verify":
        # What a user types, and nothing that this program needs besides.
        network = ROWS[names[0]].network
        words = ["verify", f"{folder}/{network}", f"{folder}/{network}.py:build", "--report", str(report), "--force"]
        command = [sys.executable, "-c", VERIFY, *words]
    else:
        only = [word for name in names for word in ("--only", name)]
        command = [sys.executable, __file__, "--part", part, *only, "--folder", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    begin, busy, before = time.perf_counter(), machine_seconds(), os.times()
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    taken, busy, after = time.perf_counter() - begin, machine_seconds() - busy, os.times()
    if done.returncode:
        raise SystemExit(f"{part} of {', '.join(names)} failed: {done.stderr[-2000:]}")
    own = after.children_user + after.children_system - before.children_user - before.children_system
    found = json.loads(done.stdout.splitlines()[-1]) if part != "verify" else _reported(report, done.stdout)
    return {
        **found,
        "wall_s": round(taken, 2),
        "processor_s": round(own, 2),
        "others": round(max(0.0, busy - own) / taken, 2),
        "load": round(os.getloadavg()[0], 1),
    }


def _reported(report: Path, printed: str) -> dict[str, Any]:
    """What a verification found, and the memory that it took."""
    found = json.loads(report.read_text())
    return {"result": found["verdict"], "checks": found["counts"]["checks"], "peak_mb": highest(printed)}


def measured(names: Sequence[str], rounds: int, threads: int) -> dict[str, Any]:
    """The figures of every row."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    alone: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent)
        process("export", names, folder, threads)
        for name in track(names, "torch alone", transient=True):
            alone[name] = process("torch", [name], folder, threads)
        for _ in track(range(rounds), "measuring", transient=True):
            for name in names:
                found[name].append(process(ROWS[name].part, [name], folder, threads))
    return {name: {"threads": threads, **summary(ROWS[name], found[name], alone[name])} for name in names}


def summary(row: Row, rounds: Sequence[Mapping[str, Any]], alone: Mapping[str, Any]) -> dict[str, Any]:
    """Medians of the times, and the most memory."""
    wall = statistics.median(each["wall_s"] for each in rounds)
    return {
        "part": row.part,
        "result": rounds[0]["result"],
        "checks": rounds[0]["checks"],
        "goal_s": row.goal,
        "wall_s": wall,
        "met": wall < row.goal,
        "processor_s": statistics.median(each["processor_s"] for each in rounds),
        "others": statistics.median(each["others"] for each in rounds),
        "peak_mb": max(each["peak_mb"] for each in rounds),
        "torch_mb": alone["peak_mb"],
        "weights_mb": alone["weights_mb"],
        "rounds": [
            {key: each[key] for key in ("wall_s", "processor_s", "others", "load", "peak_mb")} for each in rounds
        ],
    }


@click.command(help=__doc__)
@click.option("--only", multiple=True, metavar="NAME", help="Measure this row; may be given several times.")
@click.option("--rounds", default=ROUNDS, show_default=True, help="How often everything is measured.")
@click.option("--threads", default=THREADS, show_default=True, help="Of torch.")
@click.option("--update", is_flag=True, help="With --only: write these rows, keep the others.")
@click.option("--part", type=click.Choice([*PARTS]), hidden=True)
@click.option("--folder", type=click.Path(path_type=Path), hidden=True)
def main(only: Sequence[str], rounds: int, threads: int, update: bool, part: str | None, folder: Path | None) -> None:
    unknown = sorted(set(only) - set(ROWS))
    if unknown:
        raise click.BadParameter(f"there is no row {unknown[0]}; there are {', '.join(ROWS)}")
    if part is not None and folder is not None:
        found = [PARTS[part](ROWS[name], folder) or {} for name in only]
        click.echo(json.dumps({**found[-1], "peak_mb": peak()}))
        return
    rows = json.loads(RESULTS.read_text())["rows"] if update and RESULTS.exists() else {}
    rows |= measured(only or list(ROWS), rounds, threads)
    for name in only or ROWS:
        told = (f"{key} {value}" for key, value in rows[name].items() if key != "rounds")
        click.echo(f"{name:20} " + "  ".join(told))
    if update or not only:
        rows = {name: rows[name] for name in ROWS if name in rows}
        aside = RESULTS.with_suffix(".partial")
        aside.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")
        aside.replace(RESULTS)


if __name__ == "__main__":
    main()
