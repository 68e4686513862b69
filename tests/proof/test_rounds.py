"""Pieces are judged by the numbers they get, not by what became of them before; and as leniently as rounding asks."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

import poolexport
from poolexport.proof.calls import record
from poolexport.proof.graphs import Graph
from poolexport.proof.locate import locate
from poolexport.proof.rounds import Bench
from poolexport.proof.running import Runner
from poolexport.proof.segments import Answers, Segment, Walked
from poolexport.tolerance import FACTOR
from proof.faults import plant, stripped


class Cancel(nn.Module):
    """Loses all digits of its input but three."""

    def forward(self, x):
        return (x.mean((2, 3)) + 1e4) - 1e4


@pytest.fixture(scope="module")
def lossy(tmp_path_factory):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), Cancel(), nn.Linear(4, 3)).eval()
    x = torch.randn(2, 1, 9, 9)
    bundle = poolexport.export(model, x, tmp_path_factory.mktemp("lossy") / "net.onnx", verify=False)
    return model, x, bundle.model.read_bytes()


def test_a_layer_that_loses_digits_does_not_hide_what_comes_after(lossy):
    model, x, content = lossy
    assert locate(content, model, [x]).culprits == ()
    [culprit] = locate(plant(content, "scale", -1).content, model, [x]).culprits
    assert culprit.path == "2"
    # Torch is off by far more than the fault where the whole network is compared with float64.
    lost = (model(x) - model.double()(x.double())).abs().max().item()
    model.float()
    assert culprit.judgement.error < 4 * lost
    assert culprit.judgement.bound < 1e-5


def test_a_piece_is_excused_by_what_rounding_might_have_made_of_it(lossy):
    model, x, content = lossy
    model = nn.Sequential(Cancel()).eval()
    recording, graph = record(model, [x]), Graph(content, {})
    bench = Bench(
        model, [x], recording, graph, Runner(graph), {"factor": FACTOR, "rtol": None, "atol": None}, 0, 1 << 20
    )
    last = len(recording.events) - 1
    part = Segment("y", last, (), (), tuple(range(last + 1)))
    truth = x.double().mean((2, 3)).numpy()
    # A runtime that is off by what is lost, and a torch that happens not to be.
    for error, excused in ((1e-3, True), (1e-1, False)):
        answers = Answers((truth + error).astype(np.float32), truth.astype(np.float32), truth)
        walked = Walked({"y": answers}, {"y": bench._judged(answers)})
        assert not walked.judged["y"].passed
        bench._excuse([part], walked)
        assert (walked.judged["y"].passed, "y" not in walked.wrong) == (excused, excused)


@pytest.mark.parametrize(("error", "culprits"), [(3e-3, []), (1e-2, ["1"])])
def test_torch_may_have_been_lucky(error, culprits, lossy):
    """Torch is off by half a unit of 1e4 at most, and a runtime may be off by a whole one at every step."""
    model, x, content = lossy
    wrong = onnx.load_from_string(content)
    add, sub = (next(node for node in wrong.graph.node if node.op_type == kind) for kind in ("Add", "Sub"))
    wrong.graph.initializer.append(numpy_helper.from_array(np.float32(-error), "error"))
    sub.input[:] = [add.input[0], "error"]
    wrong.graph.node.remove(add)
    located = locate(wrong.SerializeToString(), model, [x])
    assert [culprit.path for culprit in located.culprits] == culprits


@pytest.mark.parametrize("fault", ["bias", "transposed"])
def test_a_convolution_with_its_norm_is_one_piece(fault, exported):
    """Without names, a convolution seems to be torch's convolution until what follows says that it is not."""
    model, inputs, content = exported("merged")
    [culprit] = locate(stripped(plant(content, fault, 0).content), model, inputs).culprits
    assert (culprit.paths, culprit.operator) == (("conv1", "norm1"), "Conv")
    assert "conv1 (Conv2d), merged with norm1," in str(culprit)


def test_what_comes_before_a_node_that_fails_is_known(exported):
    _, inputs, content = exported("residual")
    graph = Graph(plant(content, "stride", 1).content, {})
    runner = Runner(graph)
    prints = runner.prints({"x": inputs[0].numpy()})
    failing = graph.values.index("add_51")
    assert list(prints) == graph.values[:failing]
    assert runner.runs <= 2 + np.log2(len(graph.values))
