"""Exports for a release of onnxruntime: what is chosen, what is refused, and what the tables say."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from torch import nn

import poolexport
from opsets import opsets, runs_opset
from poolexport.errors import ExportError, InputError
from poolexport.pipeline import export as export_stage
from poolexport.pipeline import optimise, target
from poolexport.pipeline.convert import RULES, SAME, convert
from poolexport.pipeline.prepare import OPSETS
from poolexport.runtime import traps
from poolexport.runtime.traps import LOADS, MISSING, TRAPS, release
from runtimes.witnesses import WITNESSES

ROOT = Path(__file__).parents[2]
IMAGE = torch.randn(1, 3, 12, 14)
NHW = {0: "N", 2: "H", 3: "W"}


def export(model: nn.Module, path: Path, x: torch.Tensor = IMAGE, **options) -> poolexport.Bundle:
    return poolexport.export(model.eval(), x, path, **{"verify": False, **options})


def opset_of(bundle: poolexport.Bundle) -> int:
    return next(entry.version for entry in onnx.load(bundle.model).opset_import if entry.domain == "")


def test_the_release_is_written_down_and_an_opset_it_loads_is_chosen(tmp_path):
    bundle = export(nn.Sequential(poolexport.nn.SoftPool2d(2)), tmp_path / "net", for_ort="1.20.1", verify=True)
    assert (bundle.manifest.for_ort, bundle.manifest.opset, opset_of(bundle)) == ("1.20.1", 20, 20)
    model = onnx.load(bundle.model)
    assert {entry.key: entry.value for entry in model.metadata_props}["poolexport.for_ort"] == "1.20.1"
    assert model.ir_version <= LOADS[1, 20][1]


@pytest.mark.parametrize(
    ("version", "told"),
    [
        ("1.99", r"onnxruntime 1\.99 was never tried; what is known is about 1\.20 to 1\.32"),
        ("1.9", "was never tried"),
        ("new", r"for_ort must be a version of onnxruntime, as in '1\.22', got 'new'"),
        (1.22, "must be a version"),
    ],
)
def test_other_versions_are_refused(tmp_path, version, told):
    with pytest.raises(InputError, match=told):
        export(nn.ReLU(), tmp_path / "net", for_ort=version)


def test_an_opset_that_the_release_does_not_load_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"onnxruntime 1\.20 loads opsets up to 21, not 22"):
        export(nn.ReLU(), tmp_path / "net", for_ort="1.20", opset=22)
    assert opset_of(export(nn.ReLU(), tmp_path / "net", for_ort="1.21", opset=22)) == 22


CEIL = nn.AvgPool2d(3, 2, 1, ceil_mode=True)


@pytest.mark.parametrize(
    ("layer", "version", "opset", "told"),
    [
        (CEIL, "1.20", None, "AveragePool of 0: .*; use the layer of poolexport.nn, or ceil_mode=False"),
        (CEIL, "1.22", 18, "AveragePool of 0: windows over the end"),
        (CEIL, "1.25", None, "with optimisation on, windows over the end"),
        (CEIL, "1.28", 22, "with optimisation on, windows over the end"),
        (
            nn.Conv2d(3, 4, 3).double(),
            "1.25",
            None,
            "Conv of 0 has no kernel for double in opset 20; export in float32",
        ),
    ],
)
def test_what_a_runtime_gets_wrong_is_refused(tmp_path, monkeypatch, layer, version, opset, told):
    monkeypatch.setattr(export_stage, "translation_table", lambda **_: {})
    x = IMAGE.double() if isinstance(layer, nn.Conv2d) else IMAGE
    with pytest.raises(InputError, match=told) as caught:
        export(nn.Sequential(layer), tmp_path / "net", x, for_ort=version, opset=opset)
    assert f"not right on onnxruntime {version}" in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("version", "opset"), [("1.22", None), ("1.30", 18)])
def test_what_it_gets_right_is_not(tmp_path, monkeypatch, version, opset):
    monkeypatch.setattr(export_stage, "translation_table", lambda **_: {})
    assert export(nn.Sequential(CEIL), tmp_path / "net", for_ort=version, opset=opset).manifest.for_ort == version


def test_layers_of_ours_are_right_where_torchs_are_not(tmp_path):
    ours = nn.Sequential(poolexport.nn.AvgPool2d(3, 2, 1, ceil_mode=True))
    for version in ("1.20", "1.25"):
        export(ours, tmp_path / version, for_ort=version)


def graph_of(op: str, opset: int = 20, dtype: ir.DataType = ir.DataType.FLOAT, **attributes) -> ir.Model:
    x = ir.Value(name="x", type=ir.TensorType(dtype), shape=ir.Shape([1, 2, 8, 8]))
    node = ir.node(op, [x], attributes)
    node.outputs[0].name = "y"
    graph = ir.Graph([x], node.outputs, nodes=[node], opset_imports={"": opset}, name="g")
    return ir.Model(graph, ir_version=10)


def test_another_opset_is_chosen_where_it_helps():
    pool = {"kernel_shape": [2, 2], "pads": [0, 0, 1, 1], "count_include_pad": 1}
    uneven = graph_of("AveragePool", **pool)
    assert "windows over pads at the end only" in target.faults(uneven, (1, 22))[0]
    assert target.better(uneven, (1, 22)) == 18
    assert target.better(uneven, (1, 25)) is None
    assert target.better(graph_of("GlobalLpPool", 22, p=2), (1, 25)) == 20
    assert target.better(graph_of("AveragePool", ceil_mode=1, kernel_shape=[2, 2]), (1, 20)) is None


def test_functions_are_looked_into(tmp_path):
    model = graph_of("Identity")
    x = ir.Value(name="a")
    inner = ir.node("AveragePool", [x], {"kernel_shape": [2, 2], "ceil_mode": 1})
    inner.outputs[0].name = "b"
    body = ir.Graph([x], inner.outputs, nodes=[inner], opset_imports={"": 20}, name="f")
    function = ir.Function("own", "F", graph=body, attributes=[])
    model.functions[function.identifier()] = function
    model.graph[0].domain, model.graph[0].op_type = "own", "F"
    model.graph.opset_imports["own"] = 1
    assert len(target.faults(model, (1, 20))) == 2
    assert target.faults(model, (1, 22)) == []


def test_ports_and_functions_survive_the_search_for_faults():
    model = graph_of("AveragePool", kernel_shape=[2, 2])
    before = ir.to_proto(model).SerializeToString()
    assert target.faults(model, (1, 22)) == []
    assert ir.to_proto(model).SerializeToString() == before


# --- opsets -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("opset", opsets(17, 24, 26, 28))
@pytest.mark.parametrize("portable", [False, True])
def test_opsets_that_torch_does_not_write_give_the_models_answers(tmp_path, opset, portable):
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), poolexport.nn.S3Pool2d(2), poolexport.nn.GlobalAvgPool2d())
    bundle = export(
        nn.Sequential(*layers), tmp_path / "net", dynamic_shapes=NHW, opset=opset, portable=portable, verify=True
    )
    assert (bundle.manifest.verdict, bundle.manifest.opset, opset_of(bundle)) == ("PASS", opset, opset)
    model = onnx.load(bundle.model)
    assert {entry.version for f in model.functions for entry in f.opset_import} <= {opset}
    onnx.checker.check_model(model)


class Reduces(nn.Module):
    def forward(self, x):
        first, second, third = x[:, :1], x[:, 1:2], x[:, 2:]
        return torch.amax(first, dim=(2, 3)) + second.mean(dim=(2, 3)) - third.amin(dim=(2, 3))


def test_reductions_are_written_in_opset_17(tmp_path):
    bundle = export(Reduces(), tmp_path / "net", dynamic_shapes=NHW, opset=17, verify=True)
    assert bundle.manifest.verdict == "PASS"
    graph = onnx.load(bundle.model).graph
    assert all(len(node.input) == 1 for node in graph.node if node.op_type in ("ReduceMax", "ReduceMin"))


@pytest.mark.parametrize(
    ("op", "attributes", "told"),
    [
        ("Mish", {}, "Mish of the model itself cannot be written in opset 17: it exists from opset 18 on"),
        ("ReduceMax", {"noop_with_empty_axes": 1}, "it reduces no axis"),
        ("Split", {"num_outputs": 3, "axis": 1}, "its 3 parts are not known to be equal"),
        ("Resize", {"antialias": 1}, "it has no antialias there"),
        ("ScatterND", {"reduction": "max"}, "it takes no max or min there"),
        ("CenterCropPad", {}, "it exists from opset 18 on"),
    ],
)
def test_what_opset_17_cannot_say_is_refused(op, attributes, told):
    with pytest.raises(ExportError, match=told):
        convert(graph_of(op, 18, **attributes), 17)


def test_what_a_later_opset_changes_is_refused():
    with pytest.raises(ExportError, match=r"Range of the model itself .* opset 27 changes what it means"):
        convert(graph_of("Range", 26, ir.DataType.FLOAT16), 27)
    assert convert(graph_of("Range", 26), 27).opset_imports[""] == 27
    with pytest.raises(ExportError, match=r"Attention of the model itself .* opset 24 changes what it means"):
        convert(graph_of("Attention", 23), 24)


@pytest.mark.parametrize("opset", list(SAME))
def test_operators_that_are_said_to_stay_the_same_do(opset):
    """Neither their attributes nor their inputs change, but for an attribute whose default says what was before."""
    if onnx.defs.onnx_opset_version() < opset:
        pytest.skip("the installed onnx does not know this opset")
    changed = {
        schema.name
        for schema in onnx.defs.get_all_schemas_with_history()
        if not schema.domain and schema.since_version == opset and onnx.defs.has(schema.name, opset - 1)
    }
    assert changed >= SAME[opset]
    for name in SAME[opset]:
        old, new = onnx.defs.get_schema(name, opset - 1), onnx.defs.get_schema(name, opset)
        for side in ("inputs", "outputs"):
            names = [[(p.name, str(p.option)) for p in getattr(schema, side)] for schema in (old, new)]
            assert names[0] == names[1], name
        added = set(new.attributes) - set(old.attributes)
        assert set(old.attributes) <= set(new.attributes), name
        assert added <= {"Cast": {"round_mode"}, "CastLike": {"round_mode"}, "Range": {"stash_type"}}.get(name, set())


def test_every_operator_that_opset_18_changed_has_a_rule_or_is_refused():
    changed = {
        schema.name
        for schema in onnx.defs.get_all_schemas_with_history()
        if not schema.domain and schema.since_version == 18 and onnx.defs.has(schema.name, 17)
    }
    assert changed - set(RULES) == {"OptionalGetElement", "OptionalHasElement"}
    assert set(RULES) <= changed


# --- tables -------------------------------------------------------------------------------------------------------


def test_the_rows_are_about_releases_there_are_and_are_shown_by_a_graph():
    names = [trap.name for trap in TRAPS]
    assert len(set(names)) == len(names)
    assert set(names) == set(WITNESSES)
    for trap in TRAPS:
        for first, last in trap.releases:
            assert traps.OLDEST <= first <= last <= traps.NEWEST
        assert OPSETS.start <= trap.opsets[0] <= trap.opsets[1]
        assert trap.wrong
        assert trap.avoided
        file, _, test = trap.test.partition("::")
        text = (ROOT / file).read_text()
        assert not test or re.search(rf"^def {test}\(", text, flags=re.MULTILINE), trap.test
        assert not trap.sign or (trap.sign in target.SIGNS and trap.advice)
    assert {trap.sign for trap in TRAPS} - {""} == set(target.SIGNS)


def test_the_tables_are_true_of_the_installed_runtime():
    """All releases are tried by ``make test-runtimes``; this one here."""
    version = release(re.match(r"\d+\.\d+", ort.__version__)[0])
    for opset in range(17, 30):
        assert runs_opset(opset) == (opset <= LOADS[version][0])
    options = ort.SessionOptions()
    options.log_severity_level = 4
    for trap in TRAPS:
        if trap.name.endswith("empty batch"):
            continue  # some of them end the process
        wrong = False
        for trial in WITNESSES[trap.name]():
            if trap.opsets[0] <= trial.opset <= min(trap.opsets[1], LOADS[version][0]):
                wrong |= not _right(trial, options)
        assert wrong == trap.concerns(version), trap.name


def _right(trial, options) -> bool:
    try:
        [answer, *_] = ort.InferenceSession(trial.model, options).run(None, dict(trial.feed))
    except Exception:
        return False
    if answer.shape != trial.expected.shape:
        return False
    scale = np.abs(trial.expected[np.isfinite(trial.expected)]).max(initial=0)
    return np.allclose(answer, trial.expected, rtol=0, atol=trial.rtol * scale, equal_nan=True)


def test_a_release_is_told_from_its_version():
    assert release("1.22.1") == release("1.22") == (1, 22)
    assert traps.missing((1, 28), 20, "Cos", "DOUBLE")
    assert not traps.missing((1, 29), 20, "Cos", "DOUBLE")
    assert not traps.missing((1, 28), 20, "Cos", "FLOAT")
    assert traps.missing((1, 22), 22, "RoiAlign", "FLOAT")
    assert not traps.missing((1, 22), 20, "RoiAlign", "FLOAT")
    assert all(row.operators and row.opsets for row in MISSING)


def test_no_body_has_an_operator_that_ends_the_process():
    """Einsum on an empty batch does."""
    text = "".join(path.read_text() for path in (ROOT / "custom_ops/poolexport_ops").glob("*.py"))
    assert not re.search(r"\bop\.Einsum\b", text)


def test_a_border_is_kept_apart_by_a_pass_of_its_own(tmp_path, monkeypatch):
    """Without it the file would be wrong on the releases that the table names."""
    model = nn.Sequential(nn.ZeroPad2d(1), nn.MaxPool2d(2))
    wanted = next(trap for trap in TRAPS if trap.name == "Pad then MaxPool: opsets up to 20")
    version = release(re.match(r"\d+\.\d+", ort.__version__)[0])
    x = -torch.rand(1, 2, 8, 8)
    passes = tuple(each for each in optimise.PASSES if not isinstance(each, optimise.PadByAxes))
    monkeypatch.setattr(optimise, "PASSES", passes)
    bundle = export(model, tmp_path / "net", x)
    [answer] = poolexport.session(bundle.path).run(None, {"input": x.numpy()})
    assert np.array_equal(answer, model(x).numpy()) != wanted.concerns(version)
