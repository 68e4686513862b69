"""What was wished for, and what was reached."""

from __future__ import annotations

import contextlib
import operator
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from rich.table import Table
from serving_rows import OWN, PEERS, PYTRITON, Contender

BARE = "onnxruntime alone"
Rows = Mapping[str, Any]
Load = Mapping[str, Any]


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
    free, net = models.get("free", {}), models.get("net", {})
    return [goal for goal in (*_of_the_server(free), *_of_the_net(net), *_of_the_process(free)) if goal.found]


def _of_the_server(rows: Rows) -> Iterator[Goal]:
    """With a model that takes no time."""

    def goal(words: str, bound: float, least: bool, value: Callable[[Load], float]) -> Goal:
        # two worker processes were asked for
        return Goal(words, bound, least, _each(lambda name: value(_load(rows, f"{name}, binary", 8)), OWN[1::2]))

    what = "nearly free model, binary, 2 workers, 8 clients"
    yield goal(f"{what}: requests/s", 5000, True, lambda load: load["rps"])
    yield goal(f"{what}: CPU ms a request", 0.4, False, lambda load: load["cpu_ms"])
    for server in dict.fromkeys(row.server for row in PEERS):
        bound = 3 if server == PYTRITON else 10
        yield goal(f"{what}: times {server.name}", bound, True, partial(_times_best, rows, server, 8))


def _of_the_net(rows: Rows) -> Iterator[Goal]:
    """With a model that takes most of the time."""

    def goal(words: str, bound: float, least: bool, form: str, clients: int, value: Callable[[Load], float]) -> Goal:
        found = _each(lambda name: value(_load(rows, f"{name}, {form}", clients)))
        return Goal(f"2 ms net, {form}, {clients} client{'s' * (clients > 1)}: {words}", bound, least, found)

    yield goal("share of the best bare runs", 0.85, True, "binary", 32, lambda load: load["of_bare"])
    yield goal(
        "p50 above that of a bare run, ms",
        0.6,
        False,
        "binary",
        1,
        lambda load: _median(load, _load(rows, BARE, 1), "p50", "p50", operator.sub),
    )
    yield goal("p99 / p50", 2, False, "binary", 8, lambda load: _median(load, load, "p99", "p50", operator.truediv))
    for form, bound in (("JSON", 0.6), ("gRPC", 0.7)):
        found = _each(lambda name, form=form: _times(rows, f"{name}, binary", 32, _load(rows, f"{name}, {form}", 32)))
        yield Goal(f"2 ms net, 32 clients: {form} / binary", bound, True, found)


def _of_the_process(rows: Rows) -> Iterator[Goal]:
    """What a server takes before and beside its work."""

    def goal(words: str, bound: float, value: Callable[[Mapping[str, Any]], float]) -> Goal:
        return Goal(f"nearly free model: {words}", bound, False, _each(lambda name: value(rows[f"{name}, binary"])))

    yield goal("seconds until ready", 1.5, lambda row: statistics.median(row["starts"]))
    yield goal("MB once ready, shared pages once", 120, lambda row: row["idle"]["pss"])
    yield goal("MB after all loads, shared pages once", 120, lambda row: row["loaded"]["pss"])


def _each(value: Callable[[str], float], servers: Sequence[Contender] = OWN) -> dict[str, float]:
    """By the name of the server, where everything that it takes was measured."""
    found = {}
    for server in servers:
        with contextlib.suppress(KeyError):
            found[server.name] = round(value(server.name), 3)
    return found


def _load(rows: Rows, name: str, clients: int) -> Load:
    return rows[name]["loads"][clients]


def _times(rows: Rows, other: str, clients: int, load: Load) -> float:
    """How many times as much a load came to as another one of the same rounds."""
    return _median(load, _load(rows, other, clients), "rps", "rps", operator.truediv)


def _times_best(rows: Rows, server: Contender, clients: int, load: Load) -> float:
    """The same for the form of request in which a server gets most done."""
    names = [row.name for row in PEERS if row.server == server and "loads" in rows.get(row.name, {})]
    if not names:
        raise KeyError(server.name)
    return min(_times(rows, name, clients, load) for name in names)


def _median(one: Load, other: Load, key: str, other_key: str, how: Callable[[float, float], float]) -> float:
    """Over rounds, so that what slows a whole round down has no part in it."""
    return statistics.median(map(how, one["rounds"][key], other["rounds"][other_key]))


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
