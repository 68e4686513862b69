"""What the benchmark of the verifier found: a sentence for the README, and a table of networks."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "benchmarks/results/mutations.json"


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
        *_listed("Not caught", "missed", result),
        *_listed("Caught, and another layer named first", "misnamed", result),
    ]
    return "\n".join(lines)


def _listed(title: str, key: str, result: dict[str, Any]) -> list[str]:
    entries = [f"- {name}: {told}" for name, row in result["networks"].items() for told in row[key]]
    return ["", f"{title}:", "", *entries] if entries else []
