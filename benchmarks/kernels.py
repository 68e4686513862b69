"""How long pooling takes in every form there is: torch, torch.compile, torch.onnx, ours, and ours with native kernels.

    python benchmarks/kernels.py                         # every row; writes benchmarks/results/kernels.{json,csv}
    python benchmarks/kernels.py --only "SoftPool 2/2"   # prints, writes nothing

Machines are shared and noisy, so all forms of a row run in turns within one loop, the least time of each counts, and
what to read are ratios: to a copy of the input, which moves the bytes and computes nothing, and to each other. Where
OpenVINO can be imported it runs our file of standard operators; `make bench` installs it into .venv-bench.
"""

from __future__ import annotations

import contextlib
import csv
import importlib.util
import io
import json
import logging
import math
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import torch
from naive import regions, safe, second_order, windows
from rich.progress import track
from torch import Tensor, nn

import poolexport
from methods import machine, repeats_of
from poolexport import stress
from poolexport.errors import first_line
from poolexport.nn import (
    AdaptiveAvgPool2d,
    CompactBilinearPool2d,
    DPP2d,
    DynOPool2d,
    FractionalMaxPool2d,
    LPPool2d,
    RoIMaxPool2d,
    S3Pool2d,
    SoftPool2d,
    StochasticPool2d,
)
from poolexport.pipeline.export import export
from poolexport.pipeline.lower import lower
from poolexport.pipeline.optimise import optimise
from poolexport.pipeline.prepare import prepare
from poolexport_ops.compact_bilinear import compact_bilinear
from poolexport_ops.matrix_log import matrix_log
from poolexport_ops.softmax_pool import softmax_pool

SHAPE = (1, 64, 112, 112)
CELLS = math.prod(SHAPE)
ROUNDS = 25
#: A round repeats a form until it has taken about this long, in seconds.
LEAST = 0.01
RESULTS = Path(__file__).parent / "results" / "kernels.json"
#: How far another runtime's answer may be off, as a share of the largest magnitude, for its time to count.
ALIKE = 1e-3
#: Sizes of a square map of 64 channels, and kernels over a map of 112 by 112, for the two plots of cost.
SIZES = (8, 16, 32, 64, 128, 256, 512)
KERNELS = (2, 3, 4, 5, 7, 9, 11)

#: What the kernels are compared with, by geometric means.
COMPARED = ("torch", "torch.onnx", "torch.onnx, safe", "torch.compile", "OpenVINO", "function")

Form = Callable[[], Any]


class Lip(nn.Module):
    """LIP with the logits given, 3/2/1."""

    def forward(self, x: Tensor, logits: Tensor) -> Tensor:
        window = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1], "dilations": [1, 1]}
        y: Tensor = softmax_pool(x, logits, **window)
        return y


class Log(nn.Module):
    """The logarithm of a positive matrix."""

    def forward(self, s: Tensor) -> Tensor:
        y: Tensor = matrix_log(s, s.new_tensor([1e-3]))
        return y


class Sketch(nn.Module):
    """Compact bilinear pooling without its root and norm."""

    def __init__(self, layer: CompactBilinearPool2d) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        layer, columns = self.layer, x.flatten(2)
        ends = (layer.rand_h_1, layer.rand_s_1, layer.rand_h_2, layer.rand_s_2)
        y: Tensor = compact_bilinear(columns, columns, *ends, output_dim=layer.output_dim, pooled=1, by="pairs")
        return y


@dataclass(frozen=True)
class Row:
    """One operator in one configuration.

    Args:
        layer: ours.
        inputs: of the layer.
        goal: how many times the base the native kernel may take.
        naive: what somebody else writes; None where torch.onnx.export cannot write the layer at all.
        safe: what they write once they have met overflow, 0 / 0 and NaN; None where naive is safe.
        base: of the goal: "copy" of the first input, or a form.
        peer: a further form, by name.
        torchs: torch's own layer, where it is another than ``naive``.
        exps: how many exponentials and logarithms the formula cannot do without.
    """

    layer: nn.Module
    inputs: tuple[Tensor, ...]
    goal: float
    naive: nn.Module | None = None
    safe: nn.Module | None = None
    base: str = "copy"
    peer: tuple[str, Form] | None = None
    torchs: nn.Module | None = None
    exps: int = 0


def images(*shape: int) -> Tensor:
    return torch.from_numpy(stress.draw("normal", shape or SHAPE))


def rows() -> dict[str, Callable[[], Row]]:
    """Every row by name; each is made when it is its turn."""
    return {
        "SoftPool 2/2": lambda: Row(
            SoftPool2d(2), (images(),), 3, windows.SoftPool(2, 2), safe.SoftPool(2, 2), exps=CELLS
        ),
        "SoftPool 3/2": lambda: Row(
            SoftPool2d(3, stride=2), (images(),), 5, windows.StableSoftPool(3, 2), safe.SoftPool(3, 2), exps=CELLS
        ),
        "stochastic 3/2": lambda: Row(
            StochasticPool2d(3, stride=2), (images(),), 2.5, windows.Stochastic(), safe.Stochastic()
        ),
        "LP p=2 2/2": lambda: Row(LPPool2d(2, 2), (images(),), 1.7, windows.LP(2, 2, 2), safe.LP(2, 2, 2)),
        "LP p=3 3/2": lambda: Row(
            LPPool2d(3, 3, stride=2), (images(),), 3, windows.LP(3, 3, 2), safe.LP(3, 3, 2), exps=2 * 64 * 55**2
        ),
        "LIP 3/2/1, logits given": lambda: Row(
            Lip(), (images(), images() / 2), 5, windows.LIP(), safe.LIP(), exps=CELLS
        ),
        "DPP 2/2": lambda: Row(
            DPP2d(SHAPE[1]), (images(),), 6, windows.DetailPreserving(), safe.DetailPreserving(SHAPE[1]), exps=2 * CELLS
        ),
        "S3Pool 2/2": lambda: Row(S3Pool2d(2), (images(),), 2, windows.S3Pool(), safe.S3Pool()),
        "DynOPool r=.5": lambda: Row(
            DynOPool2d(0.5, learned=False), (images(),), 2, windows.DynOPool(), safe.DynOPool(0.5)
        ),
        "fractional max .7": fractional,
        "adaptive average 5 of 112": lambda: Row(AdaptiveAvgPool2d(5), (images(),), 1, nn.AdaptiveAvgPool2d(5)),
        "compact bilinear 64 to 8000, 14x14": compact,
        "matrix log D=256": logarithm,
        "RoI max, R=128, 256x38x50": boxes,
    }


def fractional() -> Row:
    samples = torch.rand(1, SHAPE[1], 2, generator=torch.Generator().manual_seed(0))
    layer = FractionalMaxPool2d(2, output_ratio=0.7, _random_samples=samples)
    torchs = nn.FractionalMaxPool2d(2, output_ratio=0.7, _random_samples=samples)
    return Row(layer, (images(),), 2.5, torchs=torchs)


def compact() -> Row:
    layer = CompactBilinearPool2d(64, 8000, signed_sqrt=False)
    hashes, signs = (torch.stack([getattr(layer, f"rand_{kind}_{k}") for k in (1, 2)]) for kind in "hs")
    naive = second_order.CompactBilinear(hashes, signs.float(), 8000)
    return Row(Sketch(layer), (images(1, 64, 14, 14),), 0.2, naive, base="torch")


def logarithm() -> Row:
    x = images(1, 256, 1000)
    s = (x @ x.transpose(1, 2)) / 1000
    return Row(
        Log(), (s,), 5, base="eigh", peer=("eigh", lambda: torch.linalg.eigh(s)), torchs=second_order.MatrixLog()
    )


def boxes() -> Row:
    x = images(1, 256, 38, 50)
    rng = np.random.default_rng(0)
    corners = np.sort(rng.uniform(0, [800, 608], (128, 2, 2)), axis=1).reshape(128, 4)
    rois = torch.from_numpy(np.hstack([np.zeros((128, 1)), corners]).astype(np.float32))
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    opened = ort.InferenceSession(regions.max_roi_pool((7, 7), 1 / 16), options)
    feed = {"x": x.numpy(), "rois": rois.numpy()}
    peer = ("MaxRoiPool", lambda: opened.run(None, feed))
    return Row(RoIMaxPool2d(7, 1 / 16), (x, rois), 1, base="MaxRoiPool", peer=peer)


def forms_of(row: Row, folder: Path, *, compiled: bool = True) -> tuple[dict[str, Form], dict[str, str]]:
    """The forms of a row, ready to be called, and what is wrong with those that are not worth timing."""
    layer, inputs = row.layer.eval(), row.inputs
    names = [f"x{i}" for i in range(len(inputs))]
    feed = {name: x.numpy() for name, x in zip(names, inputs)}
    theirs = (row.torchs or row.naive or layer).eval()
    untimed: dict[str, str] = {}
    forms: dict[str, Form] = {"copy": lambda: inputs[0].clone(), "torch": calling(theirs, inputs)}
    if compiled:
        torch.compiler.reset()
        forms["torch.compile"] = calling(torch.compile(theirs), inputs)
    content = ours(layer, inputs, names)
    for form, written in (("torch.onnx", row.naive), ("torch.onnx, safe", row.safe)):
        if written is not None:
            path = folder / "naive.onnx"
            exported(written.eval(), inputs, path)
            opened = poolexport.session(path, threads=1, kernels=False)
            forms[form] = running(opened, list(feed.values()))
            if form == "torch.onnx, safe":
                require_same(opened, poolexport.session(content, threads=1, kernels=False), inputs)
    for form, threads, kernels in (("function", 1, False), ("native", 1, True), ("native, 2 threads", 2, True)):
        forms[form] = running(poolexport.session(content, threads=threads, kernels=kernels), list(feed.values()))
    if has_openvino():
        inlined = ours(layer, inputs, names, portable=True)
        try:
            forms["OpenVINO"] = in_openvino(inlined, folder, list(feed.values()), forms["function"]()[0])
        except Exception as error:
            untimed["OpenVINO"] = first_line(error)
    if row.peer is not None:
        forms[row.peer[0]] = row.peer[1]
    return forms, untimed


def running(opened: ort.InferenceSession, values: Sequence[np.ndarray]) -> Form:
    feed = dict(zip((port.name for port in opened.get_inputs()), values))
    return lambda: opened.run(None, feed)


def require_same(theirs: ort.InferenceSession, ours: ort.InferenceSession, inputs: Sequence[Tensor]) -> None:
    """Refuse to compare times of what does not compute the same, for finite numbers of every size."""
    for pattern in (*stress.REGIMES, "huge", "tiny"):
        values = [stress.draw(pattern, tuple(x.shape), seed=seed) for seed, x in enumerate(inputs)]
        (answer,), (expected,) = (running(opened, values)() for opened in (theirs, ours))
        largest = float(np.nanmax(np.abs(expected), initial=0.0))
        np.testing.assert_allclose(answer, expected, rtol=1e-4, atol=1e-4 * largest, err_msg=pattern)


def calling(module: Callable[..., Any], inputs: Sequence[Tensor]) -> Form:
    def call() -> Any:
        with torch.no_grad():
            return module(*inputs)

    return call


def exported(module: nn.Module, inputs: tuple[Tensor, ...], path: Path) -> None:
    """What plain torch.onnx.export writes; it talks a lot, and of nothing that matters here."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(module, inputs, path, dynamo=True, opset_version=20, external_data=False, verbose=False)


def ours(layer: nn.Module, inputs: tuple[Tensor, ...], names: Sequence[str], *, portable: bool = False) -> bytes:
    """Our file, without the verification, which draws inputs that a function of matrices is not made for."""
    raw = export(prepare(layer, inputs, input_names=names))
    content: bytes = ir.to_proto(optimise(lower(raw, portable=portable))).SerializeToString()
    return content


def has_openvino() -> bool:
    return importlib.util.find_spec("openvino") is not None


def in_openvino(content: bytes, folder: Path, feed: list[np.ndarray], expected: np.ndarray) -> Form:
    """OpenVINO on a file; an exception where it cannot run it, or answers otherwise."""
    import openvino

    path = folder / "inlined.onnx"
    path.write_bytes(content)
    options = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    compiled = openvino.Core().compile_model(os.fspath(path), "CPU", options)
    answer = compiled(feed)[0]
    off = np.abs(answer - expected).max() / np.abs(expected).max()
    if not off <= ALIKE:
        raise ValueError("its answer is " + ("NaN" if np.isnan(off) else f"off by {off:.2g} of the largest magnitude"))
    return lambda: compiled(feed)


def milliseconds(forms: dict[str, Form], rounds: int = ROUNDS) -> dict[str, float]:
    """Least time of one call of every form, over rounds in which all of them take turns."""
    repeats = repeats_of(forms, LEAST)
    best = dict.fromkeys(forms, math.inf)
    for _ in range(rounds):
        for name, call in forms.items():
            for _ in range(repeats[name]):
                begin = time.perf_counter()
                call()
                best[name] = min(best[name], time.perf_counter() - begin)
    return {name: round(1e3 * taken, 4) for name, taken in best.items()}


def milliseconds_of_an_exp() -> float:
    """Of float32, by the faster of two libraries that are tuned for it, on numbers that stay in the cache."""
    x = torch.linspace(-8, 0, 1 << 14)
    y, a, b = torch.empty_like(x), x.numpy(), np.empty_like(x.numpy())
    taken = milliseconds({"torch": lambda: torch.exp(x, out=y), "numpy": lambda: np.exp(a, out=b)})
    return min(taken.values()) / x.numel()


def roofline(row: Row, taken: dict[str, float], moved: int, exp: float) -> dict[str, float]:
    """Milliseconds of one thread for bytes at the speed of a copy, and for exponentials at that of a library."""
    copied = 2 * 4 * row.inputs[0].numel()
    return {"bytes": round(taken["copy"] * moved / copied, 4), "exps": round(row.exps * exp, 4)}


def judged(
    name: str, row: Row, taken: dict[str, float], untimed: dict[str, str], moved: int, exp: float
) -> dict[str, Any]:
    """A row of the table: times, ratios, and whether the goal is met."""
    ratio = taken["native"] / taken[row.base]
    return {
        "row": name,
        "milliseconds": taken,
        "untimed": untimed,
        "base": row.base,
        "goal": row.goal,
        "ratio": round(ratio, 3),
        "met": ratio <= row.goal,
        "bytes": moved,
        "exps": row.exps,
        "roofline_milliseconds": roofline(row, taken, moved, exp),
        "gigabytes_per_second": round(moved / taken["native"] / 1e6, 2),
        "two_threads": round(taken["native"] / taken["native, 2 threads"], 2),
    }


def geometric_mean(results: Sequence[dict[str, Any]], form: str) -> tuple[float, int]:
    """How many times as long as the kernel a form takes, and over how many rows; those without it are left out."""
    found = [r["milliseconds"][form] / r["milliseconds"]["native"] for r in results if form in r["milliseconds"]]
    return round(math.exp(sum(map(math.log, found)) / len(found)), 2), len(found)


def swept(folder: Path) -> dict[str, Any]:
    """Cost against the size of the map and against the kernel."""
    makers: dict[str, tuple[Callable[[int], nn.Module], Callable[[int], nn.Module]]] = {
        "SoftPool": (lambda k: SoftPool2d(k, stride=2), lambda k: windows.SoftPool(k, 2)),
        "LP p=2": (lambda k: LPPool2d(2, k, stride=2), lambda k: windows.LP(2, k, 2)),
    }
    found: dict[str, Any] = {"size": {}, "kernel": {}}
    for name, (ours, naive) in makers.items():
        for kind, tried in (("size", SIZES), ("kernel", KERNELS)):
            for n in tried:
                kernel, side = (2, n) if kind == "size" else (n, SHAPE[2])
                row = Row(ours(kernel), (images(1, SHAPE[1], side, side),), 1, naive(kernel))
                taken = milliseconds(forms_of(row, folder, compiled=False)[0], rounds=7)
                found[kind].setdefault(name, {})[n] = taken
    return found


@click.command(help=__doc__)
@click.option("--only", multiple=True, metavar="ROW", help="Measure this row; may be given several times.")
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), help="Where to write the results.")
def main(only: Sequence[str], output: Path | None) -> None:
    torch.set_num_threads(1)
    known = rows()
    unknown = sorted(set(only) - set(known))
    if unknown:
        raise click.BadParameter(f"no row is called {', '.join(unknown)}; there are {', '.join(known)}")
    busy = os.getloadavg()[0]
    exp = milliseconds_of_an_exp()
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for name in track(only or list(known), "measuring"):
            row = known[name]()
            forms, untimed = forms_of(row, Path(folder))
            moved = sum(x.nbytes for x in row.inputs) + sum(y.nbytes for y in forms["native"]())
            results.append(judged(name, row, milliseconds(forms), untimed, moved, exp))
            told = "  ".join(f"{form} {taken:.3f}" for form, taken in results[-1]["milliseconds"].items())
            word = "met" if results[-1]["met"] else "missed"
            told += "".join(f"\n    {form} cannot: {reason}" for form, reason in untimed.items())
            click.echo(f"{name}: {results[-1]['ratio']:.2f} x {row.base}, goal {row.goal:g}, {word}\n    {told}")
        timed = [form for form in COMPARED if any(form in result["milliseconds"] for result in results)]
        means = {form: geometric_mean(results, form) for form in timed}
        for form, (ratio, count) in means.items():
            click.echo(f"{form}: {ratio} x the kernels, geometric mean of {count} rows")
        target = output or (None if only else RESULTS)
        if target is None:
            return
        sweeps = swept(Path(folder))
    made = machine() | {"load_before": round(busy, 2)} | ({"openvino": version("openvino")} if has_openvino() else {})
    write(target, {"machine": made, "rows": results, "means": means} | sweeps)


def write(target: Path, report: dict[str, Any]) -> None:
    """The results as JSON, and the rows as CSV beside it."""
    lines = io.StringIO()
    forms = list(dict.fromkeys(form for row in report["rows"] for form in row["milliseconds"]))
    table = csv.writer(lines, lineterminator="\n")
    table.writerow(["row", *(f"{form} ms" for form in forms), "ratio", "base", "goal", "met"])
    for row in report["rows"]:
        times = [row["milliseconds"].get(form, "") for form in forms]
        table.writerow([row["row"], *times, row["ratio"], row["base"], row["goal"], row["met"]])
    for path, text in ((target, json.dumps(report, indent=1) + "\n"), (target.with_suffix(".csv"), lines.getvalue())):
        aside = path.with_suffix(path.suffix + ".partial")
        aside.write_text(text)
        aside.replace(path)


if __name__ == "__main__":
    main()
