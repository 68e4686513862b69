"""Which modules introduce the error of a file.

A layer that is right hands on the errors of those before it, and a layer that is wrong may hide behind another that is
wrong earlier. So no value of the file is compared with the model's as it comes: the file is cut wherever one of its
values is one of the model's, every piece is given torch's own values, and its answer is judged by what torch and a
float64 run make of those. The pieces that fail are the culprits, all of them, whatever else is wrong.

A file of n nodes that runs takes one session to find the cuts, one for all pieces whose values fit into the memory
allowed, and one to tell what the culprits inherited; where onnxruntime fails, halves are tried, which takes about log n
more for every node that fails.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor, nn

from poolexport.errors import InputError
from poolexport.pipeline._run import copy_of
from poolexport.pipeline.verify import require_same_inputs, rule_of
from poolexport.proof.calls import record, values
from poolexport.proof.declared import Epsilon, epsilons
from poolexport.proof.graphs import Graph
from poolexport.proof.rounds import Bench, Round
from poolexport.proof.running import Runner
from poolexport.proof.segments import Segment
from poolexport.proof.steps import Located, Step
from poolexport.runtime import Source, plain_session
from poolexport.tolerance import FACTOR, Judgement

#: Bytes of values that are held at a time; a network whose values take more is judged in several turns.
BUDGET = 256 << 20


def locate(
    source: Source,
    model: nn.Module,
    inputs: Sequence[Tensor],
    *,
    factor: float = FACTOR,
    rtol: float | None = None,
    atol: float | None = None,
    seed: int = 0,
    budget: int = BUDGET,
) -> Located:
    """Find all modules that introduce error into a file's answers.

    A step that is wrong only as part of the whole, because many small errors add up or because onnxruntime merges it
    with its neighbours, is no culprit: nothing is wrong with the file there. One that declares another epsilon than the
    model takes is a culprit even where no answer shows it.

    Args:
        source: a bundle, an .onnx file, or its bytes; of any exporter, with the names of modules or without.
        model: what the file was made from, in eval mode; it is not changed.
        inputs: one per input of the file, best those that a check failed on.
        factor: how many times farther from the truth than torch a step may be.
        rtol, atol: replace that rule by ``error <= atol + rtol * scale``.
        seed: of the ways to round that a step may be excused by.
        budget: bytes of values to hold at a time. Besides, a part of the file takes about five times the bytes of the
            weights in it while it is made and run.

    Returns:
        The culprits, and all steps that were judged.

    Raises:
        InputError: the file and the model do not belong together, or the model fails on the inputs.

    Example:
        >>> import torch, tempfile, poolexport
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.ReLU()).eval()
        >>> x, path = torch.randn(1, 1, 8, 8), f"{tempfile.mkdtemp()}/net.onnx"
        >>> _ = poolexport.export(model, x, path)
        >>> locate(path, model, [x]).culprits
        ()
        >>> _ = torch.nn.init.ones_(model[0].bias)  # the file knows nothing of it
        >>> [culprit.path for culprit in locate(path, model, [x]).culprits]
        ['0']
    """
    rule_of(factor, rtol, atol)
    ports = plain_session(source).get_inputs()
    require_same_inputs(ports, inputs)
    original = copy_of(model)
    recording = record(original, inputs)
    graph = Graph(source, _aliases(original))
    if len(graph.outputs) != len(recording.outputs):
        raise InputError(f"the file has {len(graph.outputs)} outputs, the model {len(recording.outputs)}")
    bounds = {"factor": factor, "rtol": rtol, "atol": atol}
    bench = Bench(original, inputs, recording, graph, Runner(graph), bounds, seed, budget)
    settled = bench.settle()
    declared = _declared(settled, graph, epsilons(source, original, inputs, **bounds))
    guilty = declared.keys() | {part.target for part in settled.culprits}
    culprits = [part for part in settled.parts if part.target in guilty]
    inherited = _inherited(bench, settled, culprits)
    judged = settled.walked.judged | declared
    steps = {part.target: _step(bench, part, judged[part.target], inherited.get(part.target)) for part in settled.parts}
    return Located(tuple(steps[part.target] for part in culprits), tuple(steps.values()), bench.runner.runs)


def _declared(settled: Round, graph: Graph, wrong: Sequence[Epsilon]) -> dict[str, Judgement]:
    """How pieces are judged whose answers are right and in which an epsilon is not, by the target."""
    by_node = {epsilon.node: epsilon.judgement for epsilon in wrong}
    found: dict[str, Judgement] = {}
    for part in settled.parts:
        judged = settled.walked.judged[part.target]
        for name in (graph.nodes[number].name for number in part.nodes):
            if judged.passed and name in by_node:
                told = by_node[name]
                found[part.target] = replace(judged, passed=False, reason=told.reason, grade=told.grade)
    return found


def _inherited(bench: Bench, settled: Round, culprits: Sequence[Segment]) -> dict[str, float]:
    """How far the inputs of every culprit are from torch's where the file runs as it is, by the target."""
    events = settled.pairs.events
    names = sorted({name for part in culprits for name in part.border if name in events})
    given = {name: x.numpy() for name, x in zip(bench.graph.inputs, bench.inputs)}
    own = bench.runner.values(names, given) if names else {}
    if isinstance(own, str):
        return {}
    peers = values(bench.model, bench.inputs, {events[name] for name in names}) if names else {}
    off = {name: _share(own[name], peers[events[name]]) for name in names}
    return {part.target: max((off.get(name, 0.0) for name in part.border), default=0.0) for part in culprits}


def _share(found: np.ndarray, wanted: np.ndarray) -> float:
    """The largest difference as a share of the scale; infinite where shapes differ, or numbers are none."""
    if found.shape != wanted.shape:
        return float("inf")
    with np.errstate(all="ignore"):
        difference = np.abs(found.astype(np.float64) - wanted)
    difference = difference[~((found == wanted) | (np.isnan(found) & np.isnan(wanted)))]
    if not difference.size:
        return 0.0
    finite = np.abs(wanted[np.isfinite(wanted)].astype(np.float64)).max(initial=0.0)
    largest = float(difference.max())
    return largest / finite if finite and np.isfinite(largest) else float("inf")


def _step(bench: Bench, part: Segment, judgement: Judgement, inherited: float | None) -> Step:
    graph, events = bench.graph, bench.recording.events
    paths = tuple(dict.fromkeys(events[number].path for number in part.events))
    layers = tuple(type(bench.model.get_submodule(path)).__name__ for path in paths)
    own = [graph.nodes[number] for number in part.nodes]
    alive = set(graph.values)
    nodes = tuple(node for node in own if not alive.isdisjoint(node.outputs)) or tuple(own)
    return Step(paths, layers, nodes, part.target, events[part.event].source, judgement, inherited)


def _aliases(model: nn.Module) -> dict[str, str]:
    """The path under which each module is known here, by all the paths that lead to it."""
    first = {id(module): path for path, module in model.named_modules()}
    return {path: first[id(module)] for path, module in model.named_modules(remove_duplicate=False)}
