"""What plain ``torch.onnx.export`` does with pooling, with our table, and what our exporter does: right, wrong, or no.

    python benchmarks/baseline.py                    # every case; writes benchmarks/results/baseline.json as it goes
    python benchmarks/baseline.py --only max --only avg --resume

Every file is run at the traced size and, along its dynamic axes, at a second one: batch 5, and two cells more along
every other axis. WRONG is an answer that is farther from torch's than 1e-4 times the larger of 1 and its magnitude, and
also four times farther from torch in float64 than torch is itself; "random" differs from run to run; NO is an error;
REFUSED is a refusal of a model that has no one answer or decides by values, with the reason. A file that always
answers the same where the model draws is WRONG, too.
"""

from __future__ import annotations

import copy
import importlib.util
import io
import json
import logging
import re
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import baseline_cases as cases
import click
import numpy as np
import onnx
import onnxruntime as ort
import torch
from torch import Tensor, nn

import poolexport
from methods import machine
from poolexport.errors import PoolExportError, RandomnessError, ValueDependentError
from poolexport.pipeline._state import random_states_kept, tensors_of
from poolexport.translate import tracing, translation_table

RESULTS = Path(__file__).parent / "results" / "baseline.json"
BOUND, SLACK = 1e-4, 4.0
#: Characters of a reason that are kept.
LONGEST = 300
MODES = ("static", "N", "H,W", "N,H,W")
#: What a model is refused for that has no one answer, or decides by values: a graph holds one answer and no decisions.
REFUSALS = (RandomnessError, ValueDependentError)
COLUMNS = ("torch", "torch + table", "poolexport")


def axes_of(case: cases.Case, mode: str) -> dict[int, str] | None:
    """The dynamic axes of a mode; None where the case does not have it."""
    batch = {} if case.batch is None else {case.batch: "n"}
    spatial = {axis: "hwd"[i] for i, axis in enumerate(case.spatial)}
    both = {**batch, **spatial} if batch and spatial else {}
    chosen: dict[int, str] = {"static": {}, "N": batch, "H,W": spatial, "N,H,W": both}[mode]
    return chosen if chosen or mode == "static" else None


def second_shape(case: cases.Case, axes: Mapping[int, str]) -> tuple[int, ...]:
    shape = list(case.shape)
    for axis in axes:
        shape[axis] = 5 if axis == case.batch else shape[axis] + case.step
    return tuple(shape)


def judge(content: bytes, model: nn.Module, case: cases.Case, axes: Mapping[int, str]) -> dict[str, Any]:
    """Whether a file answers what the model answers, at both sizes."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        return {"word": "NO", "why": f"onnxruntime cannot load it: {first_line(error)}"}
    worst = 0.0
    for shape in dict.fromkeys((case.shape, second_shape(case, axes))):
        x, *others = case.inputs(shape, seed=1)
        feed = {port.name: t.numpy() for port, t in zip(session.get_inputs(), (x, *others))}
        try:
            first, again = session.run(None, feed), session.run(None, feed)
        except Exception as error:
            return {"word": "WRONG", "why": f"it fails at {shape}: {first_line(error)}"}
        if any(not np.array_equal(a, b, equal_nan=True) for a, b in zip(first, again)):
            return {"word": "random", "why": "two runs on one input differ"}
        with torch.no_grad(), random_states_kept(2):
            expected = [t.numpy() for t in tensors_of(model(x, *others))]
        with torch.no_grad(), random_states_kept(3):
            anew = [t.numpy() for t in tensors_of(model(x, *others))]
        if any(not np.array_equal(a, b, equal_nan=True) for a, b in zip(expected, anew)):
            return {"word": "WRONG", "why": "the model draws, and the file answers always the same"}
        truth = precise(model, (x, *others))
        for i, (got, want) in enumerate(zip(first, expected)):
            if got.shape != want.shape:
                return {"word": "WRONG", "why": f"shape {got.shape} instead of {want.shape} at {shape}"}
            error, scale = distance(got, want), max(1.0, magnitude(want))
            worst = max(worst, error)
            if error <= BOUND * scale:
                continue
            if truth is not None and distance(got, truth[i]) <= max(BOUND * scale, SLACK * distance(want, truth[i])):
                continue
            return {"word": "WRONG", "why": f"error {error:.0e} at {shape}"}
    kinds = {node.op_type for node in onnx.load_from_string(content).graph.node}
    return {"word": "ok", "error": worst, **({"holds": "DFT"} if "DFT" in kinds else {})}


def precise(model: nn.Module, inputs: Sequence[Tensor]) -> list[np.ndarray] | None:
    """The model's answers in float64, or None where it cannot run so."""
    try:
        with torch.no_grad(), random_states_kept(2):
            wide = copy.deepcopy(model).double()
            answers = wide(*(t.double() if t.is_floating_point() else t for t in inputs))
        return [t.numpy() for t in tensors_of(answers)]
    except Exception:
        return None


def distance(a: np.ndarray, b: np.ndarray) -> float:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    if not np.array_equal(np.isnan(a), np.isnan(b)) or not np.array_equal(a[np.isinf(a)], b[np.isinf(b)]):
        return float("inf")
    return float(np.abs(np.where(same, 0.0, a) - np.where(same, 0.0, b)).max(initial=0.0))


def magnitude(x: np.ndarray) -> float:
    finite = np.abs(np.asarray(x, np.float64))
    return float(finite[np.isfinite(finite)].max(initial=0.0))


def first_line(error: BaseException) -> str:
    """The line of torch's long reports that says what happened."""
    text = re.sub(r"\S*/site-packages/", "", str(error)).replace(f"{Path(__file__).resolve().parents[1]}/", "")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for line in lines:
        if line.startswith("<class"):
            return line[:LONGEST]
    return (lines[0] if lines else type(error).__name__)[:LONGEST]


def by_torch(model: nn.Module, case: cases.Case, axes: Mapping[int, str], table: bool, traced: bool) -> dict[str, Any]:
    inputs = case.inputs(case.shape, seed=0)
    shapes = (dict(axes), *({} for _ in inputs[1:])) if axes else None
    try:
        # torch prints the graphs that it gives up on.
        silent = redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO())
        with silent[0], silent[1], random_states_kept(0), tracing() if traced else nullcontext(), torch.no_grad():
            program = torch.onnx.export(
                model,
                inputs,
                dynamic_shapes=shapes,
                dynamo=True,
                verbose=False,
                custom_translation_table=translation_table() if table else None,
            )
        assert program is not None
        content = program.model_proto.SerializeToString()
    except Exception as error:
        ours = next((e for e in chain(error) if isinstance(e, PoolExportError)), None)
        word = "REFUSED" if isinstance(ours, REFUSALS) else "NO"
        return {"word": word, "why": first_line(ours or error)}
    return judge(content, model, case, axes)


def chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def by_table(model: nn.Module, case: cases.Case, axes: Mapping[int, str]) -> dict[str, Any]:
    """The table alone, and where that does not do, or leaves a DFT, the table with ``tracing``, which may refuse."""
    alone = by_torch(model, case, axes, table=True, traced=False)
    if alone["word"] in ("random", "REFUSED") or (alone["word"] == "ok" and "holds" not in alone):
        return alone
    traced = by_torch(model, case, axes, table=True, traced=True)
    better = traced["word"] in ("ok", "REFUSED") or (alone["word"] == "WRONG" and traced["word"] == "NO")
    return {**traced, "tracing": True} if better else alone


def by_us(model: nn.Module, case: cases.Case, axes: Mapping[int, str]) -> dict[str, Any]:
    inputs = case.inputs(case.shape, seed=0)
    shapes = [dict(axes), *({} for _ in inputs[1:])]
    with tempfile.TemporaryDirectory() as folder:
        try:
            bundle = poolexport.export(model, inputs, f"{folder}/net.onnx", dynamic_shapes=shapes)
        except REFUSALS as error:
            return {"word": "REFUSED", "why": first_line(error)}
        except Exception as error:
            return {"word": "NO", "why": f"{type(error).__name__}: {first_line(error)}"}
        return judge(bundle.model.read_bytes(), model, case, axes)


def measured(case: cases.Case) -> dict[str, dict[str, Any]]:
    """Every column of every mode that the case has."""
    row: dict[str, dict[str, Any]] = {}
    for mode in MODES:
        axes = axes_of(case, mode)
        if axes is None:
            continue
        row[mode] = {
            "torch": by_torch(case.model(), case, axes, table=False, traced=False),
            "torch + table": by_table(case.model(), case, axes),
            "poolexport": by_us(case.model(), case, axes),
        }
    return row


def word(result: Mapping[str, Any]) -> str:
    mark = " (tracing)" if result.get("tracing") else ""
    return f"ok {result['error']:.0e}{mark}" if result["word"] == "ok" else result["word"] + mark


def share_what_exports_have_in_common() -> None:
    """The test suite keeps torch's registries between exports; so does this program."""
    file = Path(__file__).parents[1] / "tests" / "conftest.py"
    spec = importlib.util.spec_from_file_location("conftest_of_the_tests", file)
    assert spec is not None
    assert spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))


@click.command(help=__doc__)
@click.option("--only", multiple=True, metavar="GROUP", help="Run this group of cases; may be given several times.")
@click.option("--resume", is_flag=True, help="Keep the rows that the results already hold.")
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), default=RESULTS, show_default=True)
def main(only: Sequence[str], resume: bool, output: Path) -> None:
    share_what_exports_have_in_common()
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    ort.set_default_logger_severity(4)
    torch.set_num_threads(1)
    groups = {case.group for case in cases.CASES}
    if set(only) - groups:
        raise click.BadParameter(f"no group is called {', '.join(set(only) - groups)}; there are {sorted(groups)}")
    known = json.loads(output.read_text())["rows"] if output.exists() and (resume or only) else {}
    names = {case.name for case in cases.CASES}
    rows = {name: row for name, row in known.items() if name in names}
    for case in cases.CASES:
        if (only and case.group not in only) or (resume and case.name in rows):
            continue
        begin = time.perf_counter()
        rows[case.name] = {"group": case.group, "modes": measured(case)}
        click.echo(f"{case.group}: {case.name}  ({time.perf_counter() - begin:.0f} s)")
        for mode, columns in rows[case.name]["modes"].items():
            click.echo("    " + f"{mode:7}" + "  ".join(f"{name}: {word(columns[name]):24}" for name in COLUMNS))
        save(rows, output)
    summary(rows)


def save(rows: Mapping[str, Any], output: Path) -> None:
    order = {case.name: place for place, case in enumerate(cases.CASES)}
    report = {
        "bound": BOUND,
        "slack": SLACK,
        "machine": {**machine(), "onnx": onnx.__version__},
        "rows": dict(sorted(rows.items(), key=lambda row: order[row[0]])),
    }
    aside = output.with_suffix(".partial")
    aside.write_text(json.dumps(report, indent=1) + "\n")
    aside.replace(output)


def summary(rows: Mapping[str, Any]) -> None:
    click.echo("")
    for column in COLUMNS:
        words = [columns[column]["word"] for row in rows.values() for columns in row["modes"].values()]
        counts = {kind: words.count(kind) for kind in ("ok", "WRONG", "random", "NO", "REFUSED")}
        click.echo(f"{column:14} " + "  ".join(f"{kind} {count}" for kind, count in counts.items()))
    for column in COLUMNS[1:]:
        for name, row in rows.items():
            for mode, columns in row["modes"].items():
                result = columns[column]
                if result["word"] in ("WRONG", "NO", "random"):
                    click.echo(f"  {column}: {result['word']:6} {name} [{mode}]: {result['why']}")


if __name__ == "__main__":
    main()
