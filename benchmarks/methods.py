"""How long every method takes on one feature map: torch against its exported file in onnxruntime.

    python benchmarks/methods.py                      # every method; writes benchmarks/results/methods.json
    python benchmarks/methods.py --only softpool      # prints, writes nothing

Machines are shared and noisy, so all forms of a method run in turns within one loop, and what counts are ratios.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnxruntime as ort
import torch
from rich.progress import track

import poolexport
from poolexport import catalog, stress
from poolexport.method import Method
from poolexport_models.recipes import layer_of, options_of

SHAPE = (1, 64, 112, 112)
ROUNDS = 9
#: A round repeats a form until it has taken about this long, in seconds.
LEAST = 0.02
RESULTS = Path(__file__).parent / "results" / "methods.json"


def forms_of(method: Method, folder: Path) -> dict[str, Callable[[], Any]]:
    """The forms of a method's first layer for images, ready to be called on one input."""
    case = next(case for case in method.cases if case.rank == 2)
    case = replace(case, options=options_of(method.name, case.options, SHAPE[1]))
    torch.manual_seed(0)
    layer = layer_of(method.name, case.options, SHAPE[1])
    inputs = method.inputs(case, stress.draw("normal", SHAPE))
    tensors = tuple(torch.from_numpy(x) for x in inputs)
    if method.random:
        layer.train()(*tensors)  # some layers count their draws before they have an inference rule
    layer.eval()
    names = [f"x{i}" for i in range(len(inputs))]
    feed = dict(zip(names, inputs))
    sessions = {}
    for form, portable in (("function", False), ("inlined", True)):
        path = folder / f"{method.name}-{form}.onnx"
        poolexport.export(layer, tensors, path, input_names=names, portable=portable)
        sessions[form] = poolexport.session(path, threads=1, kernels=False)

    def in_torch() -> Any:
        with torch.no_grad():
            return layer(*tensors)

    return {
        "copy": lambda: tensors[0].clone(),
        "torch": in_torch,
        **{form: lambda session=session: session.run(None, feed) for form, session in sessions.items()},
    }


def repeats_of(forms: dict[str, Callable[[], Any]], least: float) -> dict[str, int]:
    """How often a round calls every form, so that it takes about ``least`` seconds; each has been called before."""
    repeats = {}
    for name, call in forms.items():
        call()
        begin = time.perf_counter()
        call()
        repeats[name] = max(1, round(least / (time.perf_counter() - begin)))
    return repeats


def milliseconds(forms: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Median time of one call of every form, over rounds in which all of them take turns."""
    repeats = repeats_of(forms, LEAST)
    rounds: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(ROUNDS):
        for name, call in forms.items():
            begin = time.perf_counter()
            for _ in range(repeats[name]):
                call()
            rounds[name].append((time.perf_counter() - begin) / repeats[name])
    return {name: round(1e3 * statistics.median(taken), 4) for name, taken in rounds.items()}


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": models[0] if models else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "onnxruntime": ort.__version__,
        "numpy": np.__version__,
        "poolexport": poolexport.__version__,
        "date": date.today().isoformat(),
    }


@click.command(help=__doc__)
@click.option("--only", multiple=True, metavar="NAME", help="Measure this method; may be given several times.")
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), help="Where to write the results.")
def main(only: Sequence[str], output: Path | None) -> None:
    torch.set_num_threads(1)
    known = {name: method for name, method in catalog.methods().items() if 2 in method.ranks}
    unknown = sorted(set(only) - set(known))
    if unknown:
        raise click.BadParameter(f"no method for images is called {', '.join(unknown)}")
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in track(only or sorted(known), "measuring"):
            rows[name] = milliseconds(forms_of(known[name], Path(folder)))
            click.echo(f"{name:24} " + "  ".join(f"{form} {taken:9.3f}" for form, taken in rows[name].items()))
    target = output or (None if only else RESULTS)
    if target is not None:
        report = {"shape": SHAPE, "threads": 1, "unit": "milliseconds", "machine": machine(), "methods": rows}
        aside = target.with_suffix(".partial")
        aside.write_text(json.dumps(report, indent=1) + "\n")
        aside.replace(target)


if __name__ == "__main__":
    main()
