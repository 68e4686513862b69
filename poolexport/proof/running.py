"""Running parts of a file with onnxruntime: as few sessions as possible, and where one fails, halves of it."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from poolexport.proof.graphs import TRUE, Graph, prints_of, read_print
from poolexport.proof.prints import Print
from poolexport.runtime import Variant

#: How pieces are run: as they are written.
UNOPTIMISED = Variant("none")

Values = Mapping[str, np.ndarray]


class Runner:
    """Runs parts of one file; ``runs`` counts them.

    Args:
        graph: the file.
    """

    def __init__(self, graph: Graph) -> None:
        self.runs = 0
        self._graph = graph

    def values(self, targets: Sequence[str], inputs: Values) -> dict[str, np.ndarray] | str:
        """What the file itself makes of inputs, errors and all; or why it does not."""
        found, _, failed = self._try(targets, inputs, {}, ())
        return failed or found

    def prints(self, inputs: Values) -> dict[str, Print]:
        """The prints of all values of the file; of those before the node that fails, if one does.

        One run for a file that runs, and as many as its number of nodes has binary digits for one that does not.
        """
        whole = self._graph.values
        best = self._printed(whole, inputs)
        if best is not None:
            return best
        best, few, many = {}, 0, len(whole)
        while many - few > 1:
            middle = (few + many) // 2
            found = self._printed(whole[:middle], inputs)
            if found is None:
                many = middle
            else:
                best, few = found, middle
        return best

    def segments(
        self, targets: Sequence[str], inner: Mapping[str, Sequence[str]], cuts: Collection[str], truths: Values
    ) -> tuple[dict[str, np.ndarray | str], dict[str, Print]]:
        """What the file makes of true values, for every target, or why it fails; and prints of ``inner`` values.

        Args:
            targets: the values to make.
            inner: of every target, values on the way to it.
            cuts: the values that true ones stand in for.
            truths: true values of cuts, and of inputs.
        """
        found: dict[str, np.ndarray | str] = {}
        prints: dict[str, Print] = {}
        todo = [list(targets)]
        while todo:
            some = todo.pop()
            within = [name for target in some for name in inner.get(target, ())]
            answers, printed, failed = self._try(some, truths, truths, within, cuts)
            if failed and within and len(some) == 1:
                answers, printed, failed = self._try(some, truths, truths, (), cuts)
            if not failed:
                found |= answers
                prints |= printed
            elif len(some) == 1:
                found[some[0]] = failed
            else:
                todo += self._parted(some, cuts, failed)
        return found, prints

    def _parted(self, targets: list[str], cuts: Collection[str], failed: str) -> list[list[str]]:
        """Two parts of what failed: those that need the node that onnxruntime names and the others, or else halves."""
        named = re.search(r"Name:'([^']+)'|Node \(([^)]+)\)", failed)
        blamed = [name for name in targets if named and self._needs(name, cuts, named[1] or named[2])]
        if blamed and len(blamed) < len(targets):
            return [blamed, [name for name in targets if name not in blamed]]
        return [targets[: len(targets) // 2], targets[len(targets) // 2 :]]

    def _needs(self, target: str, cuts: Collection[str], node: str) -> bool:
        positions, _ = self._graph.between([target], cuts)
        return any(self._graph.nodes[position].name == node for position in positions)

    def _printed(self, names: Sequence[str], inputs: Values) -> dict[str, Print] | None:
        _, printed, failed = self._try((), inputs, {}, names)
        return None if failed else printed

    def _try(
        self,
        targets: Sequence[str],
        inputs: Values,
        truths: Values,
        inner: Sequence[str],
        cuts: Collection[str] = (),
    ) -> tuple[dict[str, np.ndarray], dict[str, Print], str]:
        self.runs += 1
        inner = list(dict.fromkeys(inner))
        try:
            types = {name: x.dtype for name, x in truths.items()}
            # The bytes are as large as the weights, and are let go as soon as the session has them.
            runtime = UNOPTIMISED.open(self._graph.part(targets, cuts, inner, types))
            given = truths or inputs
            feed = {port.name: given[port.name.removesuffix(TRUE)] for port in runtime.get_inputs()}
            answers = iter(runtime.run([*targets, *(each for name in inner for each in prints_of(name))], feed))
        except Exception as error:
            return {}, {}, f"onnxruntime failed: {str(error).strip().splitlines()[0]}"
        found = {name: next(answers) for name in targets}
        printed = {}
        for name in inner:
            numbers = [next(answers) for _ in prints_of(name)]
            printed[name] = read_print(numbers, self._graph.types.get(name, "float32"))
        return found, printed, ""
