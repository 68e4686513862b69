"""What the benchmarks of the verifier found: a sentence for the README, a table of networks, and one of costs."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "benchmarks/results/mutations.json"
COSTS = RESULTS.with_name("verification.json")
WHAT = {"verify": "`poolexport verify`", "locate": "one bit of a weight found"}


def found() -> dict[str, Any]:
    return json.loads(RESULTS.read_text())


def sentence() -> str:
    """The figures in short."""
    result = found()
    right = result["named_first"] / result["caught"]
    told = (
        f"Verification was tried on {result['planted']} faults of {len(result['kinds'])} kinds, planted into files of "
        f"{len(result['networks'])} networks. It caught {result['caught']} and named the layer to blame first in "
        f"{right:.1%} of those. Files without a fault, with {result['seeds']} seeds each, raised "
        f"{result['false_alarms'] or 'no'} false alarms ([every figure](docs/report.md#how-far-it-can-be-trusted))."
    )
    return textwrap.fill(told, 120, break_long_words=False, break_on_hyphens=False)


def table() -> str:
    """A row for every network, and what was missed."""
    result = found()
    rows = [
        "| network | faults | caught | right layer first | false alarms |",
        "|---|---|---|---|---|",
        *(
            f"| {name} | {row['planted']} | {row['caught']} | {row['named_first']} | {len(row['false_alarms'])} |"
            for name, row in result["networks"].items()
        ),
    ]
    machine = result["machine"]
    lines = [
        *rows,
        "",
        f"Measured on {machine['date']} with torch {machine['torch']} and onnxruntime {machine['onnxruntime']}; "
        "`make bench-mutations` measures again.",
        *_listed("Not counted, as the file computes the same in float64", "same", result),
        *_listed("Not caught", "missed", result),
        *_listed("Caught, and another layer named first", "misnamed", result),
    ]
    return "\n".join(lines)


def costs() -> str:
    """Time and memory of every row, and whether it kept to its goal."""
    report = json.loads(COSTS.read_text())
    machine, rows = report["machine"], report["rows"]
    loads = [each["load"] for row in rows.values() for each in row["rounds"]]
    rounds, threads = ([row[key] for row in rows.values()] for key in ("rounds", "threads"))
    lines = [
        "| network | what | pieces or checks | wall, s | goal, s | | processor, s | others, cores | weights, MB "
        "| torch alone, MB | at most, MB |",
        "|---|---|--:|--:|--:|---|--:|--:|--:|--:|--:|",
    ]
    lines += [
        f"| {name} | {WHAT[row['part']]} | {row['checks']} | {row['wall_s']:.1f} | {row['goal_s']:.0f} "
        f"| {'met' if row['met'] else 'missed'} | {row['processor_s']:.1f} | {row['others']:.1f} "
        f"| {row['weights_mb']:.1f} | {row['torch_mb']:.0f} | {row['peak_mb']:.0f} |"
        for name, row in rows.items()
    ]
    lines += [
        "",
        f"Measured on {machine['date']}: {machine['processor']}, {machine['cores']} cores, {machine['system']}, "
        f"Python {machine['python']}, torch {machine['torch']} on {_span(threads)} "
        f"threads, onnxruntime {machine['onnxruntime']}; medians of {_span(map(len, rounds))} "
        f"rounds, each in a fresh process. The machine is shared: its load was {_span(loads)}, and *others* are the "
        "cores that other work kept busy meanwhile; processor time is what the process itself used. "
        "`make bench-verify` measures again.",
    ]
    return "\n".join(lines)


def _span(figures: Iterable[float]) -> str:
    """The smallest and the largest."""
    found = sorted(set(figures))
    return f"{found[0]:g}" if len(found) == 1 else f"{found[0]:g} to {found[-1]:g}"


def _listed(title: str, key: str, result: dict[str, Any]) -> list[str]:
    entries = [f"- {name}: {told}" for name, row in result["networks"].items() for told in row.get(key, ())]
    return ["", f"{title}:", "", *entries] if entries else []
