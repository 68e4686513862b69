"""How long compact bilinear pooling takes: by torch's Fourier transform, and as layer and exported file of poolexport.

    python benchmarks/compact_bilinear.py             # writes benchmarks/results/compact_bilinear.json
    python benchmarks/compact_bilinear.py --print     # prints, writes nothing

Machines are shared and noisy, so all forms of a row run in turns within one loop, the least time of each counts, and
what to read are ratios. Errors are of the sums before root and norm: the largest one, relative to the largest of the
exact sums over all pairs.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor, nn

import poolexport
from methods import machine
from poolexport.nn import CompactBilinearPool2d, MultimodalCompactBilinear0d

RESULTS = Path(__file__).parent / "results" / "compact_bilinear.json"
CHANNELS = 512
#: Rows by name: the number of bins, and the shapes of the inputs.
ROWS = {
    **{
        f"map of {CHANNELS} x {side} x {side}, d = {d}": (d, [(1, CHANNELS, side, side)])
        for side in (7, 14)
        for d in (8000, 8192, 16000)
    },
    "vectors of 2048 and 2048, d = 16000": (16000, [(1, 2048), (1, 2048)]),
}
TORCH = "torch FFT"
ROUNDS = 60


class Fourier(nn.Module):
    """What a layer computes, as other codes do: sketches of every location, multiplied as spectra."""

    def __init__(self, layer: CompactBilinearPool2d | MultimodalCompactBilinear0d) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, *inputs: Tensor) -> Tensor:
        layer, d = self.layer, self.layer.output_dim
        rows = [x.flatten(2).transpose(1, 2).flatten(0, 1) if x.dim() > 2 else x for x in (inputs[0], inputs[-1])]
        ends = zip(rows, (layer.rand_h_1, layer.rand_h_2), (layer.rand_s_1, layer.rand_s_2))
        sketches = [row.new_zeros(len(row), d).index_add(1, hashes, row * signs) for row, hashes, signs in ends]
        spectra = [torch.fft.rfft(sketch) for sketch in sketches]
        z = torch.fft.irfft(spectra[0] * spectra[1], n=d).reshape(len(inputs[0]), -1, d)
        return layer.finished(z.sum(1))


def layer_for(d: int, shapes: Sequence[tuple[int, ...]], **finish: Any) -> Any:
    """The layer for inputs of these shapes, and d bins."""
    if len(shapes) == 1:
        return CompactBilinearPool2d(shapes[0][1], d, **finish).eval()
    return MultimodalCompactBilinear0d(shapes[0][1], shapes[1][1], d, **finish).eval()


def threaded(module: nn.Module, inputs: Sequence[Tensor], threads: int) -> Callable[[], Any]:
    def call() -> Any:
        torch.set_num_threads(threads)
        with torch.no_grad():
            return module(*inputs)

    return call


def exported(module: nn.Module, inputs: Sequence[Tensor], path: Path, *, portable: bool, threads: int) -> Any:
    """A call of the module's file."""
    names = [f"x{i}" for i in range(len(inputs))]
    if not path.exists():
        poolexport.export(module, tuple(inputs), path, input_names=names, portable=portable)
    session = poolexport.session(path, threads=threads, kernels=False)
    feed = {name: x.numpy() for name, x in zip(names, inputs)}
    return lambda: session.run(None, feed)[0]


def forms_of(layer: nn.Module, inputs: Sequence[Tensor], folder: Path, threads: int) -> dict[str, Callable[[], Any]]:
    return {
        TORCH: threaded(Fourier(layer), inputs, threads),  # type: ignore[arg-type]
        "layer": threaded(layer, inputs, threads),
        **{
            form: exported(layer, inputs, folder / f"{form}.onnx", portable=form == "inlined", threads=threads)
            for form in ("function", "inlined")
        },
    }


def milliseconds(forms: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Least time of one call of every form, over rounds in which all of them take turns.

    Rounds are single calls, short enough to fall between whatever else the machine does.
    """
    least = dict.fromkeys(forms, float("inf"))
    for _ in range(ROUNDS):
        for name, call in forms.items():
            begin = time.perf_counter()
            call()
            least[name] = min(least[name], time.perf_counter() - begin)
    return {name: round(1e3 * taken, 4) for name, taken in least.items()}


def exact(layer: Any, inputs: Sequence[Tensor]) -> np.ndarray:
    """The sums over all pairs, in float64."""
    a, b = (
        x.double().flatten(2).numpy() if x.dim() > 2 else x.double()[:, :, None].numpy()
        for x in (inputs[0], inputs[-1])
    )
    h1, s1, h2, s2 = (getattr(layer, f"rand_{kind}_{end}").numpy() for end in (1, 2) for kind in "hs")
    pairs = (a[0] @ b[0].T) * s1[:, None] * s2
    z = np.zeros(layer.output_dim)
    np.add.at(z, (h1[:, None] + h2) % layer.output_dim, pairs)
    return z


def measured(d: int, shapes: Sequence[tuple[int, ...]]) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    inputs = [torch.from_numpy(np.maximum(rng.standard_normal(shape), 0).astype(np.float32)) for shape in shapes]
    row: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        whole, sums = Path(folder), Path(folder) / "sums"
        sums.mkdir()
        bare = layer_for(d, shapes, signed_sqrt=False, norm="none")
        truth = exact(bare, inputs)
        row["error"] = {
            name: float(f"{np.abs(np.asarray(call())[0] - truth).max() / np.abs(truth).max():.2e}")
            for name, call in forms_of(bare, inputs, sums, 1).items()
        }
        for threads in (1, 2):
            taken = milliseconds(forms_of(layer_for(d, shapes), inputs, whole, threads))
            row[f"{threads} threads"] = taken
            row[f"{threads} threads, times {TORCH}"] = {n: round(t / taken[TORCH], 3) for n, t in taken.items()}
    return row


@click.command(help=__doc__)
@click.option("--print", "only_print", is_flag=True, help="Write nothing.")
@click.option("--only", multiple=True, metavar="TEXT", help="Rows whose name holds this; may be given several times.")
def main(only_print: bool, only: Sequence[str]) -> None:
    rows = {}
    for name, (d, shapes) in ROWS.items():
        if not only or any(text in name for text in only):
            rows[name] = measured(d, shapes)
            click.echo(name)
            for part, values in rows[name].items():
                click.echo(f"  {part:32} " + "  ".join(f"{form} {value:9.3g}" for form, value in values.items()))
    if not only_print and not only:
        report = {"unit": "milliseconds", "machine": machine(), "rows": rows}
        aside = RESULTS.with_suffix(".partial")
        aside.write_text(json.dumps(report, indent=1) + "\n")
        aside.replace(RESULTS)


if __name__ == "__main__":
    main()
