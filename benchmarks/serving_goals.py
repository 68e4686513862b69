"""What was wished for, and what was reached."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from serving_rows import OWN, PEERS, PYTRITON

BARE = "onnxruntime alone"
Rows = Mapping[str, Any]


@dataclass(frozen=True)
class Goal:
    """A bound, and what each way to start our server came to.

    Args:
        words: what was wished for.
        bound: the number.
        least: whether it is a lower bound.
        found: the numbers, by the name of the server.
    """

    words: str
    bound: float
    least: bool
    found: Mapping[str, float]

    def met(self, name: str) -> bool:
        return self.found[name] >= self.bound if self.least else self.found[name] <= self.bound


def judged(models: Mapping[str, Rows]) -> list[Goal]:
    """All goals that the measurements say something about."""
    return [goal for goal in _all(models.get("free", {}), models.get("net", {})) if goal.found]


def _all(free: Rows, net: Rows) -> Iterator[Goal]:
    two = [server.name for server in OWN if server.name.endswith("2")]
    every = [server.name for server in OWN]

    def each(names: list[str], value: Callable[[str], float]) -> dict[str, float]:
        """Of the servers that were measured."""
        found = {}
        for name in names:
            try:
                found[name] = round(value(name), 3)
            except KeyError:
                continue
        return found

    def load(rows: Rows, name: str, form: str, clients: int) -> Mapping[str, float]:
        return rows[f"{name}, {form}"]["loads"][clients]

    yield Goal(
        "nearly free model, binary, 2 workers, 8 clients: requests/s",
        5000,
        True,
        each(two, lambda name: load(free, name, "binary", 8)["rps"]),
    )
    yield Goal(
        "the same: CPU ms a request", 0.4, False, each(two, lambda name: load(free, name, "binary", 8)["cpu_ms"])
    )
    for row in PEERS:
        yield Goal(
            f"the same: times {row.server.name}",
            3 if row.server == PYTRITON else 10,
            True,
            each(two, lambda name, row=row: load(free, name, "binary", 8)["rps"] / free[row.name]["loads"][8]["rps"]),
        )
    yield Goal(
        "2 ms net, binary, 32 clients: share of the best bare runs",
        0.85,
        True,
        each(every, lambda name: load(net, name, "binary", 32)["of_bare"]),
    )
    yield Goal(
        "2 ms net, binary, 1 client: p50 above a bare run, ms",
        0.6,
        False,
        each(every, lambda name: load(net, name, "binary", 1)["p50"] - net[BARE]["loads"][1]["p50"]),
    )
    yield Goal(
        "2 ms net, binary, 8 clients: p99 / p50",
        2,
        False,
        each(every, lambda name: load(net, name, "binary", 8)["p99"] / load(net, name, "binary", 8)["p50"]),
    )
    for form, bound in (("JSON", 0.6), ("gRPC", 0.7)):
        yield Goal(
            f"2 ms net, 32 clients: {form} / binary",
            bound,
            True,
            each(
                every, lambda name, form=form: load(net, name, form, 32)["rps"] / load(net, name, "binary", 32)["rps"]
            ),
        )
    yield Goal(
        "nearly free model: seconds until ready",
        1.5,
        False,
        each(every, lambda name: statistics.median(free[f"{name}, binary"]["starts"])),
    )
    for when, words in (("idle", "once ready"), ("loaded", "after all loads")):
        yield Goal(
            f"nearly free model: MB {words}, shared pages once",
            120,
            False,
            each(every, lambda name, when=when: free[f"{name}, binary"][when]["pss"]),
        )


def table(goals: list[Goal]) -> Table:
    """Goals, a column for each way to start our server."""
    found = Table(title="Goals", title_justify="left")
    names = [server.name for server in OWN]
    found.add_column("")
    found.add_column("goal", justify="right")
    for name in names:
        found.add_column(name.partition(", ")[2], justify="right")
    for goal in goals:
        sign = ">=" if goal.least else "<="
        found.add_row(goal.words, f"{sign} {goal.bound:,g}", *(cell(goal, name) for name in names))
    return found


def cell(goal: Goal, name: str) -> str:
    """``5,900, yes``"""
    if name not in goal.found:
        return ""
    value = goal.found[name]
    return f"{value:,.0f}, {_word(goal, name)}" if value >= 100 else f"{value:.2f}, {_word(goal, name)}"


def _word(goal: Goal, name: str) -> str:
    return "yes" if goal.met(name) else "NO"
