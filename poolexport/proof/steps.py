"""What is known of the pieces of a file, each judged by itself."""

from __future__ import annotations

from dataclasses import dataclass

from poolexport.proof.graphs import Node
from poolexport.tolerance import Judgement


@dataclass(frozen=True)
class Step:
    """One piece of a file between neighbouring values that the model has, too, judged by itself.

    Args:
        paths: dotted paths of the modules whose work it is, in order; several where the file has merged them, as a
            convolution with its normalisation. Empty stands for the model itself.
        layers: classes of those modules.
        nodes: the nodes of the file, in order, without those that only prepare constants.
        value: name of the value it makes.
        source: ``file:line`` of the user's code that calls the last operator; empty where there is none.
        judgement: its answer to the true inputs: ``error`` is what it creates, ``bound`` what is allowed.
        inherited: how far its inputs are from torch's in the file as it is, as a share of their scale; None where it
            was not looked at, or the file fails before.
    """

    paths: tuple[str, ...]
    layers: tuple[str, ...]
    nodes: tuple[Node, ...]
    value: str
    source: str
    judgement: Judgement
    inherited: float | None = None

    @property
    def path(self) -> str:
        """The module that is named: the one whose nodes the file says these are, or else the first."""
        said = {node.path for node in self.nodes}
        [said_only] = said if len(said) == 1 else [None]
        return said_only if said_only is not None else self.paths[0]

    @property
    def operator(self) -> str:
        """Operators of the nodes, as in ``Conv`` or ``Cast, ReduceMean, Cast``."""
        return ", ".join(node.operator for node in self.nodes)

    def __str__(self) -> str:
        layer = dict(zip(self.paths, self.layers)).get(self.path, "")
        name = f"{self.path} ({layer})" if self.path else f"the model itself ({layer})"
        others = ", ".join(path or "the model itself" for path in self.paths if path != self.path)
        merged = f", merged with {others}," if others else ""
        called = f" called at {self.source}" if self.source else ""
        nodes = ", ".join(f"{node.name} ({node.operator})" for node in self.nodes[:4])
        more = f" and {len(self.nodes) - 4} more" if len(self.nodes) > 4 else ""
        carried = "" if self.inherited is None else f"; its inputs were off by {self.inherited:.1g} of their scale"
        return f"{name}{merged}{called} in {nodes}{more}: {self.judgement.reason}{carried}"


@dataclass(frozen=True)
class Located:
    """Where a file goes wrong.

    Args:
        culprits: the steps that introduce error, the first one first; each by itself, whatever the others do.
        steps: all steps, in the order in which the model computes them.
        runs: sessions of onnxruntime that it took.
    """

    culprits: tuple[Step, ...]
    steps: tuple[Step, ...]
    runs: int
