"""Configurations drawn from the whole option space of every method, in torch, in onnxruntime and by the reference.

Many layers are exported as one model, because an export costs more than everything else together.
"""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import numpy as np
import onnx_ir as ir
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from torch import Tensor, nn

from conformance.lab import AXES
from poolexport import catalog, stress
from poolexport.method import Case, Method
from poolexport.pipeline.export import export
from poolexport.pipeline.lower import lower
from poolexport.pipeline.optimise import optimise
from poolexport.pipeline.prepare import prepare
from poolexport.runtime import session
from poolexport.tolerance import judge

WANTED = 40
BATCH = 12
PATTERNS = ("normal", "ties", "cliff", "sparse", "huge", "tiny", "nan", "-inf")
METHODS = [method for method in catalog.methods().values() if method.space]


class Side(nn.Module):
    """Many layers on one input."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> list[Tensor]:
        answers = [layer(x) for layer in self.layers]
        return [t for answer in answers for t in (answer if isinstance(answer, tuple) else (answer,))]


def batches(method: Method) -> st.SearchStrategy[tuple[tuple[int, ...], list[dict[str, Any]]]]:
    """A shape, and configurations to try on it."""
    options = st.fixed_dictionaries({name: st.sampled_from(list(values)) for name, values in method.space.items()})
    rank = st.sampled_from(method.ranks)
    lengths = rank.flatmap(lambda r: st.tuples(*[st.integers(1, {1: 17, 2: 11, 3: 6}[r])] * r))
    shape = st.tuples(st.integers(1, 3), st.just(3), lengths).map(lambda drawn: (drawn[0], drawn[1], *drawn[2]))
    return st.tuples(shape, st.lists(options, min_size=BATCH, max_size=BATCH))


def accepted(method: Method, options: dict[str, Any], shape: tuple[int, ...]) -> Case | None:
    """The case, or None where the layer refuses it."""
    case = Case("drawn", options, shape=shape)
    try:
        with torch.no_grad():
            method.build(case)(torch.from_numpy(stress.draw("normal", shape)))
    except ValueError:
        return None
    return case


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_drawn_configurations_agree(method):
    tried = 0

    @settings(
        max_examples=30,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(batch=batches(method))
    def draw(batch):
        nonlocal tried
        if tried < WANTED:
            shape, configurations = batch
            cases = [case for options in configurations if (case := accepted(method, options, shape)) is not None]
            compare(method, cases, shape)
            tried += len(cases)

    draw()
    assert tried >= WANTED, f"the layer accepted only {tried} configurations"


def compare(method: Method, cases: list[Case], shape: tuple[int, ...]) -> None:
    if not cases:
        return
    model = Side([method.build(case) for case in cases]).eval()
    axes = {axis: name for axis, name in enumerate(AXES[len(shape)]) if name == "N"}
    example = torch.from_numpy(stress.draw("normal", shape))
    graph = optimise(lower(export(prepare(model, example, dynamic_shapes=axes))))
    runtime = session(ir.to_proto(graph).SerializeToString(), threads=1)
    for pattern in PATTERNS:
        x = stress.draw(pattern, shape)
        results = runtime.run(None, {"x": x})
        with torch.no_grad():
            peers = [t.numpy() for t in model(torch.from_numpy(x))]
        with np.errstate(all="ignore"):
            answers = [(case, method.truth(case, x)) for case in cases]
        truths = [(case.options, truth) for case, truth_of_case in answers for truth in truth_of_case]
        for result, peer, (options, truth) in zip(results, peers, truths, strict=True):
            judgement = judge(result, peer, truth, factor=2.0)
            assert judgement.passed, f"{options}, {pattern}, {shape}: {judgement.reason}"
