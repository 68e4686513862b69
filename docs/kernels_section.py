"""What the benchmark of the native kernels found: a sentence for the README, a table, and pictures."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "benchmarks/results/kernels.json"
IMAGES = Path(__file__).parent / "images"
FORMS = {
    "torch": "torch, ms",
    "torch.compile": "torch.compile",
    "torch.onnx": "torch.onnx",
    "torch.onnx, safe": "torch.onnx, safe",
    "OpenVINO": "OpenVINO",
    "function": "function",
    "native": "native",
}
#: What is said where a form has no time; the others cannot run the row.
ABSENT = {"torch.onnx, safe": "-"}
TWO_THREADS = 1.6


def found() -> dict[str, Any]:
    return json.loads(RESULTS.read_text())


def sentence() -> str:
    """The figures in short."""
    means = found()["means"]
    told = (
        f"Over the rows of that table, native kernels are {means['torch.onnx'][0]:.1f} times as fast as what "
        f"`torch.onnx.export` writes of the same formula, {means['torch.compile'][0]:.1f} times as fast as "
        f"`torch.compile`, and {means['function'][0]:.1f} times as fast as the same file without them (geometric "
        "means, one thread; [every figure](docs/kernels.md#how-fast))."
    )
    return textwrap.fill(told, 120, break_long_words=False, break_on_hyphens=False)


def table() -> str:
    """A row for every operator: all times, and how the kernel does beside its goal."""
    report = found()
    machine, rows = report["machine"], report["rows"]
    forms = {form: title for form, title in FORMS.items() if any(form in row["milliseconds"] for row in rows)}
    lines = [
        f"| operator | copy, ms | {' | '.join(forms.values())} | 2 threads, x | roofline | native is | goal | |",
        f"|---|--:|{'--:|' * len(forms)}--:|--:|--:|--:|---|",
    ]
    for row in rows:
        taken = row["milliseconds"]
        cells = [f"{taken[form]:.2f}" if form in taken else ABSENT.get(form, "cannot") for form in forms]
        least = max(row["roofline_milliseconds"].values())
        below = row["goal"] * taken[row["base"]] < least
        word = "met" if row["met"] else "missed, goal below the roofline" if below else "missed"
        lines.append(
            f"| {row['row']} | {taken['copy']:.3f} | {' | '.join(cells)} | {row['two_threads']:.2f} "
            f"| {least:.2f} | {row['ratio']:.2f} x {row['base']} | {row['goal']:g} | {word} |"
        )
    untimed = [
        f"{form} cannot do {row['row']}: {reason}."
        for row in rows
        for form, reason in row["untimed"].items()
        if form in forms
    ]
    means = ", ".join(f"{form} {ratio:.1f} ({count} rows)" for form, (ratio, count) in report["means"].items())
    slow = ", ".join(f"{row['row']} ({row['two_threads']:.2f})" for row in rows if row["two_threads"] < TWO_THREADS)
    slow = f"Missed by {slow}." if slow else "All are."
    packages = {"torch": "torch", "onnxruntime": "onnxruntime", "openvino": "OpenVINO"}
    versions = ", ".join(f"{title} {machine[name]}" for name, title in packages.items() if name in machine)
    return "\n".join(
        [
            *lines,
            "",
            f"How many times as long as the kernels the other forms take, geometric means: {means}.",
            "",
            f"Two threads are to be {TWO_THREADS} times as fast as one. {slow}",
            "",
            *([" ".join(untimed), ""] if untimed else []),
            f"Measured on {machine['date']}: {machine['processor']}, {machine['cores']} cores, {versions}; "
            f"load before the run {machine['load_before']}; `make bench` measures again.",
        ]
    )


def pictures() -> None:
    """Draw the three plots again."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "poolexport"
    import matplotlib.pyplot as plt

    report = found()
    rows = [row for row in report["rows"] if row["base"] == "copy"]
    colours = dict(zip(FORMS, ("#9aa5b1", "#6b8fb5", "#d99a5b", "#b5765f", "#a98bb8", "#7fb58f", "#1f6f4a")))
    shown = [form for form in FORMS if any(form in row["milliseconds"] for row in rows)]
    step = 0.8 / len(shown)
    figure, axes = plt.subplots(figsize=(9, 6))
    for k, form in enumerate(shown):
        places = [i + (k - (len(shown) - 1) / 2) * step for i, row in enumerate(rows) if form in row["milliseconds"]]
        ratios = [r["milliseconds"][form] / r["milliseconds"]["copy"] for r in rows if form in r["milliseconds"]]
        axes.barh(places, ratios, 0.94 * step, label=form, color=colours[form])
    axes.set(xscale="log", xlabel="times a copy of the input", yticks=range(len(rows)))
    axes.set_yticklabels([row["row"] for row in rows])
    axes.invert_yaxis()
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    _saved(figure, "kernels-rows")
    for kind, label in (("size", "side of the map of 64 channels"), ("kernel", "side of the kernel, stride 2")):
        figure, several = plt.subplots(1, len(report[kind]), figsize=(9, 4), sharey=True)
        for axes, (name, taken) in zip(several, report[kind].items()):
            for form in ("copy", *FORMS):
                points = [(int(n), times[form]) for n, times in taken.items() if form in times]
                if not points:
                    continue
                axes.plot(*zip(*points), marker="o", markersize=3, label=form, color=colours.get(form, "#cccccc"))
            axes.set(title=name, xlabel=label, yscale="log", xscale="log" if kind == "size" else "linear")
        several[0].set_ylabel("milliseconds")
        several[-1].legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
        _saved(figure, f"kernels-{kind}")


def _saved(figure: Any, name: str) -> None:
    figure.tight_layout()
    figure.savefig(IMAGES / f"{name}.svg", metadata={"Date": None})
