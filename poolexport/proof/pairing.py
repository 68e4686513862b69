"""Which value of a file is which value of the model.

First by the values themselves: what is right is found whatever it is called, in files of any exporter. Then, for what
comes after a fault, by what the file says of its nodes: the module, the operator, and the order.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from poolexport.proof.calls import Recording
from poolexport.proof.graphs import Graph
from poolexport.proof.kinds import kind_of
from poolexport.proof.naming import ByName
from poolexport.proof.prints import Print


@dataclass(frozen=True)
class Pairs:
    """What belongs together.

    Args:
        events: the event of the model, by the name of the value.
        sure: names that were found by their values, or by module and operator where there is one way to pair them.
    """

    events: Mapping[str, int]
    sure: frozenset[str]

    @property
    def cuts(self) -> frozenset[int]:
        return frozenset(self.events.values())


def pair(
    graph: Graph,
    prints: Mapping[str, Print],
    recording: Recording,
    forbidden: Collection[tuple[str, int]] = (),
) -> Pairs:
    """Pair the values of a file with the events of a run on the same inputs.

    Args:
        graph: the file.
        prints: of the values that are known; a file that fails on the way has some only.
        recording: the run.
        forbidden: pairs that were found to be wrong.
    """
    ends = {name: event for name, event in zip(graph.outputs, recording.outputs) if event is not None}
    found = _by_value(graph, prints, recording, forbidden, ends)
    events = recording.events
    right = [name for name, event in ends.items() if name in prints and prints[name].close(events[event].print)]
    same = {n for n, event in found.items() if kind_of(graph.node_of(n).operator) == kind_of(events[event].operator)}
    named = ByName(graph, prints, recording, found | ends, found.keys() | right, forbidden)
    named.pair()
    return Pairs(found | named.paired | ends, frozenset(same | named.sure | ends.keys()))


def _by_value(
    graph: Graph,
    prints: Mapping[str, Print],
    recording: Recording,
    forbidden: Collection[tuple[str, int]],
    ends: Mapping[str, int],
) -> dict[str, int]:
    events = recording.events
    alike: dict[tuple[tuple[int, ...], str], list[int]] = defaultdict(list)
    for number, event in enumerate(events):
        if event.live and number not in ends.values():
            alike[event.print.shape, event.print.dtype].append(number)
    found: dict[str, int] = {}
    used: set[int] = set()
    last = -1
    for name in graph.values:
        mine = prints.get(name)
        if mine is None or mine.plain or name in ends or not graph.leaves(name):
            continue
        path = graph.node_of(name).path
        same = [
            number
            for number in alike[mine.shape, mine.dtype]
            if number not in used and (name, number) not in forbidden and mine.close(events[number].print)
        ]
        if same:
            # Values may be equal by chance, or because nothing changed them: module, operator and order tell.
            kind = kind_of(graph.node_of(name).operator)
            strange = [
                (path is not None and events[n].path != path, kind_of(events[n].operator) != kind, n < last, n)
                for n in same
            ]
            found[name] = min(strange)[-1]
            last = found[name]
            used.add(last)
    return found
