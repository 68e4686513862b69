"""Configurations drawn from the whole option space of every method, in torch, in onnxruntime and by the reference.

Many layers are exported as one model, because an export costs more than everything else together. POOLEXPORT_DRAWN says
how many configurations of every method are tried; ``make test-space`` tries ten times as many as the suite.
"""

from __future__ import annotations

import itertools
import os
from typing import Any

import hypothesis.strategies as st
import numpy as np
import onnx_ir as ir
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from torch import Tensor, nn

from conformance.lab import named_axes
from poolexport import catalog, stress
from poolexport.method import Case, Method
from poolexport.pipeline.export import export
from poolexport.pipeline.lower import lower
from poolexport.pipeline.optimise import optimise
from poolexport.pipeline.prepare import prepare
from poolexport.runtime import session
from poolexport.tolerance import judge

WANTED = int(os.environ.get("POOLEXPORT_DRAWN", "24"))
#: Layers in one model, and how many configurations are drawn to find as many that the layer accepts.
SIDE, BATCH = 12, 36
#: Options that may differ from axis to axis; a longer tuple in a space is cut to the layer's axes.
PER_AXIS = ("kernel_size", "stride", "padding", "dilation", "output_size")
LONGEST = {0: 1, 1: 17, 2: 11, 3: 6}
METHODS = [method for method in catalog.methods().values() if method.space]


class Side(nn.Module):
    """Many layers on one input; what else each of them takes follows in their order."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor, *others: Tensor) -> list[Tensor]:
        each = len(others) // len(self.layers)
        answers = [layer(x, *others[i * each : (i + 1) * each]) for i, layer in enumerate(self.layers)]
        return [t for answer in answers for t in (answer if isinstance(answer, tuple) else (answer,))]


def batches(method: Method) -> st.SearchStrategy[tuple[tuple[int, ...], list[dict[str, Any]]]]:
    """Spatial lengths, and configurations to try on them."""
    options = st.fixed_dictionaries({name: st.sampled_from(list(values)) for name, values in method.space.items()})
    rank = st.sampled_from(method.ranks)
    lengths = rank.flatmap(lambda r: st.tuples(*[st.integers(1, LONGEST[r])] * r))
    return st.tuples(lengths, st.lists(options, min_size=BATCH, max_size=BATCH))


def points(method: Method) -> list[tuple[int, ...]]:
    """Maps of a single cell."""
    return [(1,) * rank for rank in method.ranks]


def fitted(options: dict[str, Any], rank: int) -> dict[str, Any]:
    """The options, with those that differ by axis cut to the number of axes."""
    return {
        name: value[:rank] if name in PER_AXIS and isinstance(value, tuple) else value
        for name, value in options.items()
    }


def accepted(method: Method, options: dict[str, Any], shape: tuple[int, ...]) -> Case | None:
    """The case, or None where the layer refuses it."""
    case = Case("drawn", fitted(options, len(shape) - 2), shape=shape)
    try:
        with torch.no_grad():
            method.build(case)(*map(torch.from_numpy, method.inputs(case, stress.draw("normal", shape))))
    except ValueError:
        return None
    return case


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_drawn_configurations_agree(method):
    tried = 0
    remaining = points(method)

    @settings(
        max_examples=max(40, WANTED),
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(batch=batches(method))
    def draw(batch):
        nonlocal tried
        if remaining or tried < WANTED:
            lengths, configurations = batch
            most = 4 if remaining else SIDE
            lengths, batches = (remaining.pop(), (1, 0)) if remaining else (lengths, (2, 0))
            shape = (1, 3, *lengths)
            every = (case for options in configurations if (case := accepted(method, options, shape)) is not None)
            cases = list(itertools.islice(every, most))
            compare(method, cases, [(size, 3, *lengths) for size in batches])
            tried += len(cases)

    draw()
    assert not remaining, "maps of a single cell were not tried"
    assert tried >= WANTED, f"the layer accepted only {tried} configurations"


def every_input(method: Method, cases: list[Case], x: np.ndarray) -> list[np.ndarray]:
    """The shared input, and what every case needs besides."""
    return [x, *(other for case in cases for other in method.inputs(case, x)[1:])]


def compare(method: Method, cases: list[Case], shapes: list[tuple[int, ...]]) -> None:
    """One export of all cases, run on batches of every size asked for."""
    if not cases:
        return
    model = Side([method.build(case) for case in cases]).eval()
    examples = every_input(method, cases, stress.draw("normal", shapes[0]))
    names = [f"x{i}" for i in range(len(examples))]
    tensors = [*map(torch.from_numpy, examples)]
    per_case = named_axes(method, tensors[: 1 + len(tensors[1:]) // len(cases)])
    axes = [{0: every[0]} if 0 in every else {} for every in (per_case[0], *per_case[1:] * len(cases))]
    prepared = prepare(model, tensors, dynamic_shapes=axes, input_names=names)
    graph = optimise(lower(export(prepared)))
    content = ir.to_proto(graph).SerializeToString()
    forms = {
        "function": session(content, threads=1, kernels=False),
        "native": session(content, threads=1, kernels=True),
    }
    for pattern, shape in itertools.product((*stress.REGIMES, *stress.EXTREMES), shapes):
        x = stress.draw(pattern, shape)
        inputs = every_input(method, cases, x)
        with torch.no_grad():
            peers = [t.numpy() for t in model(*map(torch.from_numpy, inputs))]
        with np.errstate(all="ignore"):
            answers = [(case, method.truth(case, x)) for case in cases]
        truths = [(case.options, truth) for case, truth_of_case in answers for truth in truth_of_case]
        for form, opened in forms.items():
            results = opened.run(None, dict(zip(names, inputs)))
            for result, peer, (options, truth) in zip(results, peers, truths, strict=True):
                judgement = judge(result, peer, truth, factor=2.0)
                assert judgement.passed, f"{form}, {options}, {pattern}, {shape}: {judgement.reason}"
