"""Values of a file that come after a fault are none of the model's: their modules, operators and order pair them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence

from poolexport.proof.calls import Recording
from poolexport.proof.graphs import Graph
from poolexport.proof.kinds import MERGED, kind_of
from poolexport.proof.prints import Print


class ByName:
    """Pairs what is left when values have been paired by their numbers.

    Args:
        graph: the file.
        prints: of the values that are known.
        recording: a run of the model.
        found: the event of every value that is paired, outputs among them.
        right: names of the values that are right.
        forbidden: pairs that were found to be wrong.
    """

    def __init__(
        self,
        graph: Graph,
        prints: Mapping[str, Print],
        recording: Recording,
        found: Mapping[str, int],
        right: Collection[str],
        forbidden: Collection[tuple[str, int]],
    ) -> None:
        self._graph, self._prints, self._recording, self._forbidden = graph, prints, recording, forbidden
        self._floors = _floors(graph, found)
        self._astray = _astray(graph, right)
        used = set(found.values())
        self._names = [name for name in graph.values if name not in found and graph.leaves(name)]
        self._events = [
            number
            for number, event in enumerate(recording.events)
            if number not in used and event.live and not event.print.plain
        ]
        self.paired: dict[str, int] = {}
        #: Names that leave no doubt.
        self.sure: set[str] = set()

    def pair(self) -> None:
        """Pair module by module, then what says nothing of modules, and what a name led astray, all over the file."""
        names: dict[str | None, list[str]] = defaultdict(list)
        for name in self._names:
            names[self._graph.node_of(name).path].append(name)
        events: dict[str, list[int]] = defaultdict(list)
        for number in self._events:
            events[self._recording.events[number].path].append(number)
        for path, some in names.items():
            if path is not None:
                self._pair(some, events[path], alone=len(some) == len(events[path]) == 1)
        taken = set(self.paired.values())
        rest = [n for n in self._names if n not in self.paired and self._graph.node_of(n).group is None]
        self._pair(rest, [number for number in self._events if number not in taken], alone=False)

    def _pair(self, names: Sequence[str], numbers: Sequence[int], *, alone: bool) -> None:
        """Pair values with events of one module, of which there may be one each."""
        mine = Counter(self._kind(name) for name in names)
        theirs = Counter(kind_of(self._recording.events[number].operator) for number in numbers)
        for name, number in _aligned(names, numbers, self._weight):
            kind = self._kind(name)
            alike = kind == kind_of(self._recording.events[number].operator)
            # Between right values, what does not belong together might be paired; nothing has to be.
            if name in self._astray or alone or (alike and mine[kind] == theirs[kind]):
                self.paired[name] = number
                told = self._graph.node_of(name).group is not None and name in self._astray
                if told and (alone or (alike and mine[kind] == theirs[kind] == 1)):
                    self.sure.add(name)

    def _weight(self, name: str, number: int) -> int:
        """How well both fit together; 0 where they cannot belong together."""
        event, known = self._recording.events[number], self._prints.get(name)
        if (name, number) in self._forbidden or number <= self._floors[name]:
            return 0
        if known is not None and not known.alike(event.print):
            return 0
        # Lengths are a hint only: a fault may have changed them from here to the end.
        fits = 1 if known is not None and known.fits(event.print) else 0
        kinds = self._kind(name), kind_of(event.operator)
        if kinds[0] == kinds[1]:
            return 8 + fits
        if kinds in MERGED:
            return 6 + fits
        if self._graph.node_of(name).path != event.path:
            return 0
        return 2 * (2 if number in self._recording.returned else 1) + fits

    def _kind(self, name: str) -> str:
        return kind_of(self._graph.node_of(name).operator)


def _astray(graph: Graph, right: Collection[str]) -> set[str]:
    """Values from which one comes to an output without meeting a right one.

    Others that the model does not know are steps on the way from one right value to the next.
    """
    astray: set[str] = set()
    for node in reversed(graph.nodes):
        for name in node.outputs:
            takers = (graph.nodes[number] for number in graph.takers.get(name, ()))
            onward = name in graph.outputs or any(not astray.isdisjoint(taker.outputs) for taker in takers)
            if onward and name not in right:
                astray.add(name)
    return astray


def _floors(graph: Graph, found: Mapping[str, int]) -> dict[str, int]:
    """The last event that is known to lie before a value."""
    floors: dict[str, int] = {}
    for node in graph.nodes:
        before = max((found.get(name, floors.get(name, -1)) for name in node.inputs), default=-1)
        floors |= dict.fromkeys(node.outputs, before)
    return floors


def _aligned(names: Sequence[str], numbers: Sequence[int], weight: Callable[[str, int], int]) -> list[tuple[str, int]]:
    """The pairs of greatest weight in all that keep the order of both."""
    rows, columns = len(names), len(numbers)
    best = [[0] * (columns + 1) for _ in range(rows + 1)]
    gains = [[weight(name, number) for number in numbers] for name in names]
    for i in reversed(range(rows)):
        for j in reversed(range(columns)):
            skip = max(best[i + 1][j], best[i][j + 1])
            best[i][j] = max(skip, gains[i][j] + best[i + 1][j + 1]) if gains[i][j] else skip
    pairs, i, j = [], 0, 0
    while i < rows and j < columns:
        if gains[i][j] and best[i][j] == gains[i][j] + best[i + 1][j + 1]:
            pairs.append((names[i], numbers[j]))
            i, j = i + 1, j + 1
        elif best[i][j] == best[i + 1][j]:
            i += 1
        else:
            j += 1
    return pairs
