"""The comparison of servers as a section of the page of benchmarks."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TITLES = {"free": "Nearly free model", "net": "Network of 2 ms"}
HEAD = (
    "| server, form of the request | requests/s at 1 | at 8 | at 32 | of bare | p50 at 1, ms | at 8 | at 32 "
    "| p99 at 1, ms | at 8 | at 32 | processor, ms | idle, MB | loaded, MB | start, s |"
)


def lines(results: Path) -> list[str]:
    """The section; nothing before the comparison was made."""
    if not results.exists():
        return []
    report = json.loads(results.read_text())
    found = ["## Serving", "", *_introduction(report)]
    for name, rows in report["models"].items():
        found += ["", f"### {TITLES[name]}", "", HEAD, f"|---{'|--:' * 14}|"]
        found += [_row(title, row) for title, row in rows.items()]
    servers = list(dict.fromkeys(name for goal in report["goals"] for name in goal["found"]))
    heads = [name.partition(", ")[2] for name in servers]
    found += ["", "### Goals", "", f"| goal | bound | {' | '.join(heads)} |", f"|---{'|--:' * (1 + len(heads))}|"]
    return found + [_goal(goal, servers) for goal in report["goals"]]


def _introduction(report: Mapping[str, Any]) -> list[str]:
    machine, options, others = report["machine"], report["options"], report["others"]
    rounds = min(len(load["rounds"]["rps"]) for load in _loads(report))
    versions = dict(pair for found in report["versions"].values() for pair in found.items())
    return [
        "Our server beside others, each in an environment of its own, on the same two models: one that is nearly free, "
        "the means of a 3x64x64 image, so that the server is all that is measured, and a convolutional network with Lp "
        "pooling of about 2 ms. Every server runs the model with one thread a run and two runs at a time, and is asked "
        "in the form that suits it best, by wrk, and over gRPC by "
        f"{options['grpc_client']}, from 1, 8 and 32 connections. Servers stand still while another is measured. In "
        f"each of {rounds} rounds all rows take turns, {options['seconds']} s a load, and what is told are "
        "medians; answers are compared before and after every load. *Of bare* is the share, at 32 connections, of the "
        "most that onnxruntime alone gets done in the same round, on two threads with a batch of 1, 4 or 8; its own "
        "row is one thread, then that. Processor time is that of the server's processes at 8 connections; memory "
        "counts shared pages once; x 2 are two worker processes; wrk's "
        "p99 includes what waited behind a slow answer. `make bench-serve` measures again.",
        "",
        f"Measured on {machine['date']}: {machine['processor']}, {machine['cores']} cores, {machine['system']}, "
        f"Python {machine['python']}; {', '.join(f'{name} {version}' for name, version in versions.items())}. Other "
        f"work kept {others['median']:.2f} cores busy in the median load, {others['most']:.2f} at most.",
    ]


def _loads(report: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    rows = [row for found in report["models"].values() for row in found.values()]
    return [load for row in rows for load in row.get("loads", {}).values()]


def _row(title: str, row: Mapping[str, Any]) -> str:
    if "invalid" in row:
        reason = row["invalid"].splitlines()[0][:120].replace("|", "&#124;")
        return f"| {title} | invalid: {reason} {'| ' * 13}|"
    loads = list(row["loads"].values())
    cells = [title, *(f"{load['rps']:,.0f}" for load in loads), f"{loads[-1]['of_bare']:.2f}"]
    cells += [_milliseconds(load[key]) for key in ("p50", "p99") for load in loads]
    cells += [_milliseconds(loads[1]["cpu_ms"])]
    cells += [f"{row[when]['pss']:.0f}" for when in ("idle", "loaded")] if "idle" in row else ["", ""]
    cells += [f"{statistics.median(row['starts']):.1f}" if "starts" in row else ""]
    return f"| {' | '.join(cells)} |"


def _milliseconds(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.0f}"


def _goal(goal: Mapping[str, Any], servers: list[str]) -> str:
    cells = [goal["words"], f"{'at least' if goal['least'] else 'at most'} {goal['bound']:,g}"]
    for name in servers:
        value = goal["found"].get(name)
        if value is None:
            cells.append("")
            continue
        met = value >= goal["bound"] if goal["least"] else value <= goal["bound"]
        cells.append(
            f"{value:,.0f}, {'yes' if met else 'no'}" if value >= 100 else f"{value:.2f}, {'yes' if met else 'no'}"
        )
    return f"| {' | '.join(cells)} |"
