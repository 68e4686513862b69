"""Faults in our own exporter, planted into its code: the export fails, nothing is written, and the layer is named."""

from __future__ import annotations

import importlib
import inspect
import json
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import onnx
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

import poolexport
from cli.conftest import invoke, working_in
from poolexport.errors import ExportError, FrozenAxisError, ParityError, PoolExportError, RandomnessError
from poolexport.nn import MaxPool2d, MixedPool2d, SoftPool2d, StochasticPool2d
from poolexport.pipeline import optimise
from poolexport.proof.failing import Failing
from poolexport.proof.locate import locate

AXES = {0: "N", 2: "H", 3: "W"}
#: Puts a fault into our code.
Plant = Callable[[pytest.MonkeyPatch], None]


class Net(nn.Module):
    """A convolution, a norm, a pooling, and a score of everything."""

    def __init__(self, pool: nn.Module, norm: nn.Module | None = None, head: nn.Module | None = None) -> None:
        super().__init__()
        self.features = nn.Sequential()
        self.features.add_module("conv", nn.Conv2d(1, 4, 3, padding=1))
        self.features.add_module("norm", norm or nn.Identity())
        self.features.add_module("pool", pool)
        self.head = head or nn.Identity()
        self.score = nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.score(self.head(self.features(x)))


class Rows(nn.Module):
    """Every row minus its mean, by way of a reshape that computes sizes."""

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(x.shape[0], x.shape[1] * x.shape[2], x.shape[3])
        return (rows - rows.mean(2, keepdim=True)).reshape(x.shape)


def edited(owner: str, name: str, *changes: tuple[str, str]) -> Plant:
    """Write lines of a function of ours otherwise.

    Args:
        owner: a module, or a class or an operator in one, as in ``poolexport_ops._body:Body``.
        name: of the function there.
        changes: what stands there once, and what is to stand there.
    """

    def plant(monkeypatch: pytest.MonkeyPatch) -> None:
        module, _, inner = owner.partition(":")
        held = importlib.import_module(module)
        held = getattr(held, inner) if inner else held
        function = getattr(held, name)
        source = textwrap.dedent(inspect.getsource(function))
        for old, new in changes:
            assert source.count(old) == 1, f"{owner}.{name} has no place for the fault: {old}"
            source = source.replace(old, new)
        made: dict[str, Any] = {}
        exec("from __future__ import annotations\n" + source, function.__globals__, made)
        monkeypatch.setattr(held, name, made[function.__name__])

    return plant


def one_more_pass(added: ir.passes.InPlacePass) -> Plant:
    """Let the optimiser run one more pass, before all others but the inference of shapes."""
    return lambda monkeypatch: monkeypatch.setattr(
        optimise, "PASSES", (optimise.PASSES[0], added, *optimise.PASSES[1:])
    )


class FoldLengths(ir.passes.InPlacePass):
    """Takes the lengths of the input for those of the trace."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        for node in list(model.graph):
            if node.op_type == "Shape" and node.inputs[0] is model.graph.inputs[0]:
                start, end = (node.attributes.get_int(name, default) for name, default in (("start", 0), ("end", 4)))
                fixed = ir.node("Constant", [], {"value_ints": [2, 4, 12, 13][start:end]})
                fixed.metadata_props.update(node.metadata_props)
                assert node.graph is not None
                ir.convenience.replace_nodes_and_values(node.graph, node, [node], [fixed], node.outputs, fixed.outputs)
        return ir.passes.PassResult(model, True)


class NoEpsilon(ir.passes.InPlacePass):
    """Takes the epsilon of a normalisation for nothing."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        for node in model.graph:
            if node.op_type == "BatchNormalization":
                node.attributes.add(ir.AttrFloat32("epsilon", 0.0))
        return ir.passes.PassResult(model, True)


@dataclass(frozen=True)
class Case:
    """A fault.

    Args:
        plant: puts it into our code.
        build: a network that meets it.
        path: the layer to blame.
        error: what the export raises.
    """

    plant: Plant
    build: Callable[[], Net]
    path: str
    error: type[PoolExportError] = ParityError


POOL = "features.pool"
CASES = {
    "pads swapped in an operator's body": Case(
        edited(
            "poolexport_ops._body:Body",
            "pad",
            ("self.ints(0, 0, *window.begin, 0, 0, *window.end)", "self.ints(0, 0, *window.end, 0, 0, *window.begin)"),
        ),
        lambda: Net(MaxPool2d(3, 2, 1, ceil_mode=True)),
        POOL,
    ),
    "no guard for windows far below others": Case(
        edited(
            "poolexport_ops.softmax_pool:softmax_pool",
            "onnx_form",
            ("[op.Sub(score, largest) for score in scores]", "scores"),
        ),
        lambda: Net(SoftPool2d(2)),
        POOL,
    ),
    "no guard for windows without a weight": Case(
        edited(
            "poolexport_ops.weighted_average_pool:weighted_average_pool",
            "onnx_form",
            ("op.Where(empty, one, denominator)", "denominator"),
            ("op.Where(empty, zero, total(op, weighted))", "total(op, weighted)"),
        ),
        lambda: Net(StochasticPool2d(2)),
        POOL,
    ),
    "an epsilon deleted by the optimiser": Case(
        edited(
            "poolexport.pipeline.optimise:NormaliseByDouble",
            "_write",
            ("op.Sqrt(op.Add(variance, epsilon))", "op.Sqrt(variance)"),
        ),
        lambda: Net(nn.MaxPool2d(2), nn.GroupNorm(2, 4)),
        "features.norm",
    ),
    "an epsilon deleted that no answer shows": Case(
        one_more_pass(NoEpsilon()), lambda: Net(nn.MaxPool2d(2), nn.BatchNorm2d(4)), "features.norm"
    ),
    "lengths folded by the optimiser": Case(
        one_more_pass(FoldLengths()), lambda: Net(nn.Identity(), head=Rows()), "head", FrozenAxisError
    ),
    "a divisor dropped by the table": Case(
        edited(
            "poolexport.translate.average",
            "_average",
            ('0 if divisor_override is None else fixed(divisor_override, "divisor_override", 1)[0]', "0"),
        ),
        lambda: Net(nn.AvgPool2d(2, divisor_override=3)),
        POOL,
    ),
    "padding counted by the table": Case(
        edited("poolexport.translate.average", "_average", ("if count_include_pad else", "if True else")),
        lambda: Net(nn.AvgPool2d(3, 2, 1, count_include_pad=False)),
        POOL,
    ),
    "an adaptive size frozen by the table": Case(
        edited("poolexport.translate.adaptive", "_bins", ("bins.append(0)", "bins.append(12)")),
        lambda: Net(nn.AdaptiveAvgPool2d((None, 3))),
        POOL,
        FrozenAxisError,
    ),
    "weights rounded to half precision on the way": Case(
        edited(
            "poolexport.pipeline.prepare", "prepare", ("model=duplicate,", "model=copy_of(duplicate).half().float(),")
        ),
        lambda: Net(nn.MaxPool2d(2)),
        "features.conv",
    ),
    "one body for two configurations": Case(
        edited(
            "poolexport.pipeline.lower",
            "lower",
            ('f"{operator.name}_{count + 1}" if count else operator.name', "operator.name"),
        ),
        lambda: Net(MaxPool2d(2, 1, 1), head=MaxPool2d(3, 1, 1)),
        POOL,
    ),
}


def built(case: Case) -> tuple[Net, Tensor]:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        model = case.build().eval()
        with torch.no_grad():
            # An even batch of ones and fresh statistics would hide what a norm does.
            for module in model.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.running_var.uniform_(0.5, 2.0)
                    module.running_mean.uniform_(-1.0, 1.0)
        return model, torch.randn(2, 1, 12, 13)


def written(file: Any) -> list[bytes]:
    """What a file computes."""
    model = onnx.load(file)
    return [model.graph.SerializeToString(), *(each.SerializeToString() for each in model.functions)]


@pytest.mark.parametrize("name", CASES)
def test_a_fault_in_our_code_fails_the_export(name, tmp_path, monkeypatch):
    case = CASES[name]
    model, x = built(case)
    sound = poolexport.export(model, x, tmp_path / "sound.onnx", dynamic_shapes=AXES)
    assert sound.manifest.verdict == "PASS"
    case.plant(monkeypatch)
    with pytest.raises(case.error) as caught:
        poolexport.export(model, x, tmp_path / "net.onnx", dynamic_shapes=AXES)
    assert type(caught.value) is case.error
    assert [file.name for file in tmp_path.iterdir()] == ["sound.onnx"]
    wrong = poolexport.export(model, x, tmp_path / "wrong.onnx", dynamic_shapes=AXES, verify=False)
    monkeypatch.undo()
    assert written(wrong.model) != written(sound.model)
    if isinstance(caught.value, FrozenAxisError):
        assert caught.value.path == case.path
    else:
        assert f"to blame: {case.path} (" in str(caught.value)
    failing = Failing()
    with pytest.raises(case.error):
        poolexport.verify(wrong.path, model, x, watch=failing)
    assert locate(wrong.path, model, failing.inputs).culprits[0].path == case.path


@pytest.mark.parametrize(
    "layer", [nn.Dropout(0.5), MixedPool2d(2, inference="expectation")], ids=lambda layer: type(layer).__name__
)
def test_a_layer_that_is_left_in_training_mode_is_named(layer, tmp_path, monkeypatch):
    """What draws needs no comparison: the graph says so."""
    model, x = built(Case(lambda _: None, lambda: Net(layer), POOL))
    edited("poolexport.pipeline.prepare", "prepare", ("model=duplicate,", "model=duplicate.train(),"))(monkeypatch)
    with pytest.raises(RandomnessError, match=r"from features\.pool"):
        poolexport.export(model, x, tmp_path / "net", dynamic_shapes=AXES)
    assert list(tmp_path.iterdir()) == []


def test_a_body_that_is_taken_for_another_fails_the_inlining(tmp_path, monkeypatch):
    model, x = built(CASES["one body for two configurations"])
    bundle = poolexport.export(model, x, tmp_path / "net", dynamic_shapes=AXES)
    forgets = '[setattr(node, "op_type", node.op_type.removesuffix("_2")) for node in model.graph]; InlinePass()(model)'
    edited("poolexport.pipeline.inline", "inlined", ("InlinePass()(model)", forgets))(monkeypatch)
    with pytest.raises(ExportError, match=r"inlined, .*; nothing was written"):
        poolexport.api.inline(bundle.path, tmp_path / "plain")
    assert [file.name for file in tmp_path.iterdir()] == ["net"]


NET = """
import torch
from torch import nn
from poolexport.nn import MaxPool2d


def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), MaxPool2d(2))
"""


def test_the_command_tells_of_an_epsilon_that_no_answer_shows(tmp_path, monkeypatch):
    (tmp_path / "net.py").write_text(NET)
    with working_in(tmp_path):
        right = invoke("export", "net.py:build", "--input", "1x1x9x9", "-o", "right.onnx")
        assert right.exit_code == 0, right.output
        one_more_pass(NoEpsilon())(monkeypatch)
        refused = invoke("export", "net.py:build", "--input", "1x1x9x9", "-o", "wrong.onnx")
        assert refused.exit_code == 1
        assert "to blame: 1 (BatchNorm2d)" in " ".join(refused.stderr.split())
        invoke("export", "net.py:build", "--input", "1x1x9x9", "-o", "wrong.onnx", "--no-verify")
        monkeypatch.undo()
        assert invoke("verify", "right.onnx", "net.py:build").exit_code == 0
        words = ("verify", "wrong.onnx", "net.py:build", "--report", "reports", "--witness", "wrong.npz")
        found = invoke(*words)
    assert found.exit_code == 1
    assert "GUILTY  1 (BatchNorm2d)" in found.stdout
    assert "epsilon is 0 in the file and 1e-05 in the model" in found.stdout
    assert "no witness: the file answers these inputs rightly" in found.stdout
    report = json.loads((tmp_path / "reports/report.json").read_text())
    assert (report["verdict"], report["grade"]) == ("FAIL", "DEGRADED")
    assert [culprit["path"] for culprit in report["culprits"]] == ["1"]
    assert [check["values"] for check in report["checks"] if not check["passed"]] == ["declared"]
    assert report["measures"]["ulps"] < 1e3
