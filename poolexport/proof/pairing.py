"""Which value of a file is which value of the model.

First by the values themselves: what is right is found whatever it is called, in files of any exporter. Then, for what
comes after a fault, by what the file says of its nodes: the module, the operator, and the order.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from poolexport.proof.calls import Recording
from poolexport.proof.graphs import Graph
from poolexport.proof.prints import Print

#: Names of one operator in torch and in ONNX.
KINDS = {
    "convolution": "conv",
    "mkldnn_convolution": "conv",
    "convtranspose": "conv",
    "addmm": "gemm",
    "mm": "matmul",
    "bmm": "matmul",
    "native_batch_norm": "batchnormalization",
    "_native_batch_norm_legit_no_training": "batchnormalization",
    "max_pool2d_with_indices": "maxpool",
    "max_pool3d_with_indices": "maxpool",
    "maxpoolwithindices": "maxpool",
    "avg_pool2d": "averagepool",
    "avg_pool3d": "averagepool",
    "_adaptive_avg_pool2d": "adaptiveaveragepool",
    "cat": "concat",
    "hardtanh": "clip",
    "clamp": "clip",
    "clamp_min": "max",
    "amax": "reducemax",
    "globalmaxpool": "reducemax",
    "mean": "reducemean",
    "globalaveragepool": "reducemean",
    "sum": "reducesum",
    "maximum": "max",
    "minimum": "min",
    "_to_copy": "cast",
    "native_layer_norm": "layernormalization",
    "native_group_norm": "groupnormalization",
    "upsample_nearest2d": "resize",
    "upsample_bilinear2d": "resize",
    "view": "reshape",
    "_unsafe_view": "reshape",
    "flatten": "reshape",
    "permute": "transpose",
    "t": "transpose",
}


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
    events = recording.events
    found = _by_value(graph, prints, recording, forbidden, ends)
    right = {name for name, event in ends.items() if name in prints and prints[name].close(events[event].print)}
    floors = _floors(graph, found)
    astray = _astray(graph, found.keys() | right)
    rest: dict[str | None, list[str]] = defaultdict(list)
    for name in graph.values:
        if name not in found and name not in ends and graph.leaves(name):
            rest[graph.nodes[graph.maker[name]].path].append(name)
    used = set(found.values()) | set(ends.values())
    free: dict[str | None, list[int]] = defaultdict(list)
    for number, event in enumerate(events):
        if number not in used and event.live and not event.print.plain:
            free[event.path].append(number)
            free[None].append(number)

    def of_one_kind(name: str, number: int) -> bool:
        return kind_of(graph.nodes[graph.maker[name]].operator) == kind_of(events[number].operator)

    def weight(name: str, number: int) -> int:
        event, path = events[number], graph.nodes[graph.maker[name]].path
        known = prints.get(name)
        if (name, number) in forbidden or number <= floors[name] or (known and not known.alike(event.print)):
            return 0
        # Lengths are a hint only: a fault may have changed them from here to the end.
        fits = 1 if known and known.fits(event.print) else 0
        if of_one_kind(name, number):
            return 8 + fits
        return 0 if path is None else 2 * (2 if number in recording.returned else 1) + fits

    sure = ends.keys() | {name for name, number in found.items() if of_one_kind(name, number)}
    taken: set[int] = set()
    # Nodes that say where they are from come first; the others take what is left.
    for path in sorted(rest, key=lambda path: path is None):
        numbers = [number for number in free[path] if number not in taken]
        kinds = Counter(kind_of(graph.nodes[graph.maker[name]].operator) for name in rest[path])
        same = Counter(kind_of(events[number].operator) for number in numbers)
        alone = path is not None and len(rest[path]) == len(numbers) == 1
        for name, number in _aligned(rest[path], numbers, weight):
            kind = kind_of(events[number].operator)
            alike = of_one_kind(name, number)
            if name in astray or alone or (alike and kinds[kind] == same[kind]):
                found[name] = number
                taken.add(number)
            if name in astray and (alone or (path is not None and alike and kinds[kind] == same[kind] == 1)):
                sure.add(name)
    return Pairs(found | ends, frozenset(sure))


def kind_of(operator: str) -> str:
    """One name for what torch and ONNX call differently."""
    plain = operator.rpartition("::")[2].rstrip("_")
    lower = plain.lower()
    return KINDS.get(lower, lower.replace("_", ""))


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
        path = graph.nodes[graph.maker[name]].path
        same = [
            number
            for number in alike[mine.shape, mine.dtype]
            if number not in used and (name, number) not in forbidden and mine.close(events[number].print)
        ]
        if same:
            # Values may be equal by chance, or because nothing changed them: module, operator and order tell.
            kind = kind_of(graph.nodes[graph.maker[name]].operator)
            strange = [
                (path is not None and events[n].path != path, kind_of(events[n].operator) != kind, n < last, n)
                for n in same
            ]
            found[name] = min(strange)[-1]
            last = found[name]
            used.add(last)
    return found


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


def _aligned(names: Sequence[str], numbers: Sequence[int], weight) -> list[tuple[str, int]]:  # type: ignore[no-untyped-def]
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
