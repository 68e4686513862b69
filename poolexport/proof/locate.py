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
from dataclasses import dataclass
from functools import partial

import numpy as np
from torch import Tensor, nn

from poolexport.errors import InputError
from poolexport.pipeline._rounding import SAMPLES
from poolexport.pipeline._run import copy_of
from poolexport.pipeline.verify import SENSITIVITY, require_same_inputs, rule_of, unit_of
from poolexport.proof.calls import Recording, record, values
from poolexport.proof.graphs import Graph
from poolexport.proof.pairing import Pairs, pair
from poolexport.proof.running import Runner
from poolexport.proof.segments import Answers, ExcuseWalk, Segment, SegmentWalk, Walked, consumers, segments
from poolexport.proof.shadow import by_lot, moved
from poolexport.proof.steps import Located, Step
from poolexport.runtime import Source, session
from poolexport.tolerance import FACTOR, Judgement, judge

#: Bytes of values that are held at a time; a network whose values take more is judged in several turns.
BUDGET = 256 << 20
#: How often the cuts are chosen anew, after what the last ones showed.
ROUNDS = 6


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
    with its neighbours, is no culprit: nothing is wrong with the file there.

    Args:
        source: a bundle, an .onnx file, or its bytes; of any exporter, with the names of modules or without.
        model: what the file was made from, in eval mode; it is not changed.
        inputs: one per input of the file, best those that a check failed on.
        factor: how many times farther from the truth than torch a step may be.
        rtol, atol: replace that rule by ``error <= atol + rtol * scale``.
        seed: of the ways to round that a step may be excused by.
        budget: bytes of values to hold at a time.

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
    ports = session(source).get_inputs()
    require_same_inputs(ports, inputs)
    original = copy_of(model)
    bounds = {"factor": factor, "rtol": rtol, "atol": atol}
    recording = record(original, inputs)
    graph = Graph(source, _aliases(original))
    if len(graph.outputs) != len(recording.outputs):
        raise InputError(f"the file has {len(graph.outputs)} outputs, the model {len(recording.outputs)}")
    runner = Runner(graph)
    prints = runner.prints({name: x.numpy() for name, x in zip(graph.inputs, inputs)})
    unit = unit_of(inputs)
    forbidden: set[tuple[str, int]] = set()
    best: _Round | None = None
    for _ in range(ROUNDS):
        pairs = pair(graph, prints, recording, forbidden)
        if best is not None and pairs.events == best.pairs.events:
            break
        parts = segments(graph, recording, pairs)
        walk = SegmentWalk(original, graph, runner, parts, partial(_judged, bounds=bounds), budget)
        walked = walk.judged(inputs)
        _excuse(original, recording, parts, walked, inputs, unit, seed, bounds)
        latest = _Round(pairs, parts, walked)
        if best is not None and len(walked.wrong) > len(best.walked.wrong):
            break
        best = latest
        if not walked.wrong:
            break
        prints |= walked.prints
        forbidden |= _doubtful(latest)
    assert best is not None
    inherited = _inherited(original, graph, runner, best, inputs)
    steps = [
        _step(original, graph, recording, part, best.walked.judged[part.target], inherited.get(part.target))
        for part in best.parts
    ]
    unclear = {name for name, _ in _doubtful(best)}
    wrong = [step for step in steps if not step.judgement.passed]
    clear = [
        step
        for step, part in zip(steps, best.parts)
        if not step.judgement.passed and part.target not in unclear and unclear.isdisjoint(part.border)
    ]
    return Located(tuple(clear or wrong[:1]), tuple(steps), runner.runs)


@dataclass(frozen=True)
class _Round:
    """One choice of cuts, and what it showed."""

    pairs: Pairs
    parts: list[Segment]
    walked: Walked


def _judged(
    result: np.ndarray | str,
    peer: np.ndarray,
    truth: np.ndarray,
    *,
    bounds: dict[str, float | None],
    moved: np.ndarray | None = None,
    others: Sequence[np.ndarray] = (),
) -> Judgement:
    if isinstance(result, str):
        return Judgement(False, float("inf"), 0.0, 0.0, 0.0, result)
    return judge(result, peer, truth, moved=moved, others=others, sensitivity=SENSITIVITY, **bounds)  # type: ignore[arg-type]


def _excuse(
    original: nn.Module,
    recording: Recording,
    parts: Sequence[Segment],
    walked: Walked,
    inputs: Sequence[Tensor],
    unit: float,
    seed: int,
    bounds: dict[str, float | None],
) -> None:
    """Acquit steps whose error torch might have made as well, had it rounded otherwise."""
    suspects = [part for part in parts if _is_arguable(walked.wrong.get(part.target))]
    if not suspects:
        return
    shadows = [moved(unit, seed), *(by_lot(seed + number) for number in range(SAMPLES))]
    walk = ExcuseWalk(original, recording, suspects, shadows)
    walk.walk(inputs)
    for part in suspects:
        answers = walked.wrong[part.target]
        shaken, *others = walk.found[part.target]
        judgement = _judged(answers.result, answers.peer, answers.truth, bounds=bounds, moved=shaken, others=others)
        walked.judged[part.target] = judgement
        if judgement.passed:
            del walked.wrong[part.target]


def _is_arguable(answers: Answers | None) -> bool:
    """Whether it is a matter of numbers that an answer is wrong."""
    if answers is None or isinstance(answers.result, str):
        return False
    return answers.result.shape == answers.peer.shape and answers.result.dtype == answers.peer.dtype


def _doubtful(latest: _Round) -> set[tuple[str, int]]:
    """Pairs that may not belong together: given the value of the model, something that takes it is wrong, too."""
    takers, wrong = consumers(latest.parts), latest.walked.wrong.keys()
    return {
        (name, latest.pairs.events[name])
        for name in wrong - latest.pairs.sure
        if not takers.get(name) or not wrong.isdisjoint(takers[name])
    }


def _inherited(
    original: nn.Module, graph: Graph, runner: Runner, best: _Round, inputs: Sequence[Tensor]
) -> dict[str, float]:
    """How far the inputs of every culprit are from torch's where the file runs as it is, by the target."""
    culprits = [part for part in best.parts if part.target in best.walked.wrong]
    events = best.pairs.events
    names = sorted({name for part in culprits for name in part.border if name in events})
    own = runner.values(names, {name: x.numpy() for name, x in zip(graph.inputs, inputs)}) if names else {}
    if isinstance(own, str):
        return {}
    peers = values(original, inputs, {events[name] for name in names}) if names else {}
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


def _step(
    model: nn.Module, graph: Graph, recording: Recording, part: Segment, judgement: Judgement, inherited: float | None
) -> Step:
    paths = tuple(dict.fromkeys(recording.events[number].path for number in part.events))
    own = [graph.nodes[number] for number in part.nodes]
    alive = set(graph.values)
    nodes = tuple(node for node in own if not alive.isdisjoint(node.outputs)) or tuple(own)
    layers = tuple(type(model.get_submodule(path)).__name__ for path in paths)
    source = recording.events[part.event].source
    return Step(paths, layers, nodes, part.target, source, judgement, inherited)


def _aliases(model: nn.Module) -> dict[str, str]:
    """The path under which each module is known here, by all the paths that lead to it."""
    first = {id(module): path for path, module in model.named_modules()}
    return {path: first[id(module)] for path, module in model.named_modules(remove_duplicate=False)}
