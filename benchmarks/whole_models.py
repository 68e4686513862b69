"""What exporting and proving a whole network costs: time, and memory beside that of torch alone.

    python benchmarks/whole_models.py                    # every network; writes benchmarks/results/whole_models.json
    python benchmarks/whole_models.py --only resnet50    # prints, writes nothing
    python benchmarks/whole_models.py --only resnet50 --update    # replaces one row of the results

Each figure is that of a fresh process. One builds the network and runs it once: torch's own footprint. The other builds
it, exports it with every axis dynamic, and verifies the file.
"""

from __future__ import annotations

import json
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import torch

import poolexport
from methods import machine
from poolexport_models import zoo

RESULTS = Path(__file__).parent / "results" / "whole_models.json"
THREADS = 2


def in_torch(network: zoo.Network) -> dict[str, Any]:
    """Build and run once."""
    model, sample = network.build(), network.sample(1)
    begin = time.perf_counter()
    with torch.no_grad():
        model(*sample)
    taken = time.perf_counter() - begin
    tensors = [*model.parameters(), *model.buffers()]
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "model_mb": round(sum(x.numel() * x.element_size() for x in tensors) / 1e6, 1),
        "forward_s": round(taken, 2),
        "torch_mb": peak(),
    }


def exported(network: zoo.Network) -> dict[str, Any]:
    """Build, export and verify."""
    model, sample = network.build(), network.sample(1)
    with tempfile.TemporaryDirectory() as folder:
        begin, used = time.perf_counter(), time.process_time()
        bundle = poolexport.export(model, sample, f"{folder}/net", dynamic_shapes=network.axes)
        taken, used = time.perf_counter() - begin, time.process_time() - used
    manifest = bundle.manifest
    return {
        "export_s": round(taken, 1),
        "processor_s": round(used, 1),
        "export_mb": peak(),
        "verdict": manifest.verdict,
        "checks": manifest.checks,
        "skipped": manifest.skipped,
        "worst_error": manifest.worst_error,
    }


def peak() -> float:
    """Largest resident memory that this process had so far, in MB."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage also counts what the parent held when it started this process
        return highest(status.read_text())
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6, 1)


def highest(status: str) -> float:
    """That number, from what Linux says of a process."""
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return round(int(found[1]) * 1024 / 1e6, 1)


def measured(name: str) -> dict[str, Any]:
    """Both processes' figures for one network."""
    row: dict[str, Any] = {}
    for part in ("in_torch", "exported"):
        command = [sys.executable, __file__, "--part", part, "--only", name]
        row |= json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    row["above_torch"] = round((row["export_mb"] - row["torch_mb"]) / row["model_mb"], 2)
    return row


@click.command(help=__doc__)
@click.option("--only", multiple=True, metavar="NAME", help="Measure this network; may be given several times.")
@click.option("--update", is_flag=True, help="With --only: write these rows, keep the others.")
@click.option("--part", type=click.Choice(["in_torch", "exported"]), hidden=True)
def main(only: Sequence[str], update: bool, part: str | None) -> None:
    torch.set_num_threads(THREADS)
    networks = [zoo.network(name) for name in only or zoo.NETWORKS]
    if part is not None:
        click.echo(json.dumps({"in_torch": in_torch, "exported": exported}[part](networks[0])))
        return
    rows = json.loads(RESULTS.read_text())["networks"] if update and RESULTS.exists() else {}
    for network in networks:
        rows[network.name] = measured(network.name)
        click.echo(f"{network.name:20} " + "  ".join(f"{key} {value}" for key, value in rows[network.name].items()))
    if update or not only:
        rows = {name: rows[name] for name in zoo.NETWORKS if name in rows}
        report = {"threads": THREADS, "machine": machine(), "networks": rows}
        aside = RESULTS.with_suffix(".partial")
        aside.write_text(json.dumps(report, indent=1) + "\n")
        aside.replace(RESULTS)


if __name__ == "__main__":
    main()
