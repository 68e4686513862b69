"""The whole pipeline: what comes out, what is refused, and what is left on disk."""

from __future__ import annotations

import copy
import json
import os
import stat

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import nn

import poolexport
from opsets import opsets
from poolexport.bundle import METADATA_KEY, Manifest
from poolexport.errors import ExportError, InputError, OutputError, ParityError, RandomnessError
from poolexport.pipeline import export as export_stage
from poolexport.pipeline.export import require_no_randomness

NHW = {0: "N", 2: "H", 3: "W"}
IMAGE = torch.randn(1, 1, 17, 19)


class Net(nn.Module):
    """Two different configurations of one operator, and one used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3)
        self.first = poolexport.nn.SoftPool2d(2)
        self.second = poolexport.nn.SoftPool2d(3, 2, 1, ceil_mode=True)
        self.third = poolexport.nn.SoftPool2d(2)

    def forward(self, x):
        return self.third(self.second(self.first(self.conv(x).relu())))


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


@pytest.mark.parametrize("portable", [False, True])
@pytest.mark.parametrize("opset", opsets(17, 18, 20, 23, 26))
def test_every_opset_and_form_gives_the_models_answers(net, tmp_path, opset, portable):
    bundle = poolexport.export(net, IMAGE, tmp_path / "net", dynamic_shapes=NHW, opset=opset, portable=portable)
    model = onnx.load(bundle.model)
    onnx.checker.check_model(model, full_check=portable)
    assert {o.domain: o.version for o in model.opset_import}[""] == opset
    assert [f.name for f in model.functions] == ([] if portable else ["SoftmaxPool", "SoftmaxPool_2"])
    assert not any(f.overload for f in model.functions), "onnxruntime before 1.27 ignores overloads"
    assert bundle.manifest.form == ("inlined" if portable else "function")
    session = poolexport.session(bundle.path)
    for shape in ((1, 1, 17, 19), (4, 1, 32, 21)):
        x = torch.randn(shape)
        with torch.no_grad():
            np.testing.assert_allclose(session.run(None, {"x": x.numpy()})[0], net(x).numpy(), rtol=1e-5, atol=1e-6)


def test_bundle_describes_itself(net, tmp_path):
    bundle = poolexport.export(net, IMAGE, tmp_path / "net", dynamic_shapes=NHW)
    assert sorted(os.listdir(bundle.path)) == ["manifest.json", "model.onnx", "sample.npz"]
    written = Manifest.from_json((bundle.path / "manifest.json").read_text())
    assert written == bundle.manifest
    metadata = {p.key: p.value for p in onnx.load(bundle.model).metadata_props}
    assert Manifest.from_json(metadata[METADATA_KEY]) == written
    assert metadata["poolexport.verdict"] == "PASS"
    assert written.inputs[0].shape == ("N", 1, "H", "W")
    assert written.layers == {"first": "softpool", "second": "softpool", "third": "softpool"}
    sample = np.load(bundle.path / "sample.npz")
    [answer] = poolexport.session(bundle.path).run(None, {"x": sample["input/x"]})
    np.testing.assert_allclose(answer, sample["output/output"], rtol=1e-6)


def test_inference_rule_of_every_random_layer_is_in_the_metadata(tmp_path):
    model = nn.Sequential(poolexport.nn.StochasticPool2d(2), poolexport.nn.S3Pool2d(2)).eval()
    bundle = poolexport.export(model, IMAGE, tmp_path / "net.onnx", dynamic_shapes=NHW)
    metadata = {p.key: p.value for p in onnx.load(bundle.model).metadata_props}
    assert metadata["poolexport.inference.0"] == "expectation: probability-weighted average"
    assert metadata["poolexport.inference.1"].startswith("average: ")


def test_file_names_no_path_of_the_machine(net, tmp_path):
    bundle = poolexport.export(net, IMAGE, tmp_path / "net.onnx")
    content = bundle.model.read_bytes()
    for path in (os.getcwd(), os.path.dirname(__file__), os.path.dirname(torch.__file__)):
        assert path.encode() not in content


def test_model_and_random_state_are_unchanged(net, tmp_path):
    before = {name: value.clone() for name, value in net.state_dict().items()}
    state = torch.get_rng_state()
    poolexport.export(net, IMAGE, tmp_path / "net.onnx", dynamic_shapes=NHW)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert not any(module.training for module in net.modules())


def test_half_precision_exports_and_verifies(net, tmp_path):
    model = copy.deepcopy(net).half()
    bundle = poolexport.export(model, IMAGE.half(), tmp_path / "net", dynamic_shapes=NHW)
    assert bundle.manifest.verdict == "PASS"


def test_double_precision_exports_and_verifies_where_the_runtime_has_kernels(net, tmp_path):
    pools = nn.Sequential(net.first, net.second, poolexport.nn.AvgPool2d(2, ceil_mode=True)).double().eval()
    bundle = poolexport.export(pools, IMAGE.double(), tmp_path / "net", dynamic_shapes=NHW)
    assert bundle.manifest.verdict == "PASS"
    with pytest.raises(InputError, match="has no Conv for this data type; export the model in float32"):
        poolexport.export(copy.deepcopy(net).double(), IMAGE.double(), tmp_path / "conv", dynamic_shapes=NHW)


class DecidesByValue(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


def test_model_that_decides_by_value_is_one_quiet_sentence(tmp_path, capfd):
    with pytest.raises(ExportError, match="decides by the values of a tensor") as caught:
        poolexport.export(DecidesByValue().eval(), IMAGE, tmp_path / "net")
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.AdaptiveAvgPool2d(7), "14x15|15x14|failed|shape"),
        (nn.AvgPool2d(2, divisor_override=3), "error"),
    ],
    ids=["frozen-adaptive", "dropped-divisor"],
)
def test_silently_wrong_export_is_an_error_and_leaves_nothing(layer, reason, tmp_path, monkeypatch):
    monkeypatch.setattr(export_stage, "translation_table", lambda **_: {})
    model = nn.Sequential(nn.Conv2d(1, 2, 1), layer).eval()
    with pytest.raises(ParityError, match=reason) as caught:
        poolexport.export(model, torch.randn(2, 1, 14, 14), tmp_path / "net", dynamic_shapes=NHW)
    assert not caught.value.verdict.passed
    assert list(tmp_path.iterdir()) == []


def test_axis_that_the_model_fixes_is_refused(tmp_path):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).eval()
    with pytest.raises(ExportError, match=r"axis H \(number 2\) of input 'input' cannot be dynamic.* length of 8"):
        poolexport.export(model, torch.randn(2, 1, 8, 8), tmp_path / "net", dynamic_shapes={2: "H"})
    assert list(tmp_path.iterdir()) == []


def test_random_operator_in_the_finished_graph_is_refused():
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT))
    node = ir.Node("", "RandomUniformLike", [x], metadata_props={"pkg.torch.onnx.name_scopes": "['', 'pool', 'rand']"})
    graph = ir.Graph([x], node.outputs, nodes=[node], opset_imports={"": 20})
    with pytest.raises(RandomnessError, match="RandomUniformLike from pool"):
        require_no_randomness(ir.Model(graph, ir_version=10))


class DrawsWhileTraced(nn.Module):
    """Deterministic for whoever runs it, random for whoever traces it."""

    def forward(self, x):
        return x + torch.rand_like(x) if torch.onnx.is_in_onnx_export() else x


def test_graph_is_scanned_even_where_the_model_repeats_itself(tmp_path):
    with pytest.raises(RandomnessError, match=r"RandomUniformLike from 1"):
        poolexport.export(nn.Sequential(nn.ReLU(), DrawsWhileTraced()).eval(), IMAGE, tmp_path / "net")


def test_existing_target_is_kept_unless_forced(net, tmp_path):
    target = tmp_path / "net.onnx"
    target.write_text("precious")
    with pytest.raises(OutputError, match="exists; choose another path"):
        poolexport.export(net, IMAGE, target)
    assert target.read_text() == "precious"
    poolexport.export(net, IMAGE, target, force=True)
    assert poolexport.verify(target, net).passed
    assert sorted(os.listdir(tmp_path)) == ["net.onnx"]


def test_forced_export_through_a_link_replaces_the_link_only(net, tmp_path):
    first = poolexport.export(net, IMAGE, tmp_path / "first")
    (tmp_path / "link").symlink_to(first.path)
    poolexport.export(net, IMAGE, tmp_path / "link", force=True)
    assert sorted(os.listdir(tmp_path)) == ["first", "link"]
    assert not (tmp_path / "link").is_symlink()
    assert poolexport.verify(tmp_path / "first", net).passed


def test_form_is_plain_where_nothing_of_ours_is_in_the_graph(tmp_path):
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.MaxPool2d(2)).eval()
    for portable in (False, True):
        bundle = poolexport.export(model, IMAGE, tmp_path / f"net-{portable}", portable=portable)
        assert (bundle.manifest.form, bundle.manifest.layers) == ("plain", {})


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.pool = poolexport.nn.SoftPool2d(2)
        self.spare = poolexport.nn.SoftPool2d(3)

    def forward(self, x):
        return self.pool(x)


def test_layer_that_is_never_called_is_not_in_the_manifest(tmp_path):
    bundle = poolexport.export(Unused().eval(), IMAGE, tmp_path / "net")
    assert bundle.manifest.layers == {"pool": "softpool"}


def test_runtime_failures_leave_stderr_alone(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(export_stage, "translation_table", lambda **_: {})
    model = nn.Sequential(nn.AdaptiveAvgPool2d(3)).eval()
    with pytest.raises(ParityError):
        poolexport.export(model, torch.randn(1, 1, 16, 16), tmp_path / "net", dynamic_shapes=NHW)
    assert capfd.readouterr().err == ""


def test_folder_that_is_not_a_bundle_is_never_replaced(net, tmp_path):
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "chapter1.tex").write_text("precious")
    with pytest.raises(OutputError, match="holds more than a bundle"):
        poolexport.export(net, IMAGE, folder, force=True)
    assert (folder / "chapter1.tex").read_text() == "precious"


def test_missing_folder_is_refused_before_any_work(net, tmp_path):
    with pytest.raises(OutputError, match="does not exist"):
        poolexport.export(net, IMAGE, tmp_path / "a" / "b")


def test_written_bundle_is_readable_by_others(net, tmp_path):
    bundle = poolexport.export(net, IMAGE, tmp_path / "net")
    assert stat.S_IMODE(bundle.path.stat().st_mode) & 0o055 == 0o055


def test_verify_reads_only_the_file_and_tells_another_model_apart(net, tmp_path):
    bundle = poolexport.export(net, IMAGE, tmp_path / "net", dynamic_shapes=NHW)
    assert poolexport.verify(bundle.path, net).passed
    assert poolexport.verify(bundle.model, net, IMAGE).passed
    torch.manual_seed(1)
    with pytest.raises(ParityError, match="checks failed"):
        poolexport.verify(bundle.path, Net().eval())
    with pytest.raises(InputError, match=r"has shape \['N', 1, 'H', 'W'\], the example \[1, 2, 17, 19\]"):
        poolexport.verify(bundle.path, net, torch.randn(1, 2, 17, 19))
    with pytest.raises(InputError, match="the file is tensor\\(float\\), the example tensor\\(double\\)"):
        poolexport.verify(bundle.path, net, IMAGE.double())


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x08\x0a" * 100])
def test_damaged_file_is_one_clear_sentence(net, tmp_path, content):
    file = tmp_path / "net.onnx"
    file.write_bytes(content)
    for call in (lambda: poolexport.session(file), lambda: poolexport.verify(file, net, IMAGE)):
        with pytest.raises(InputError) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_one_bad_weight_bit_is_caught(net, tmp_path):
    bundle = poolexport.export(net, IMAGE, tmp_path / "net.onnx", dynamic_shapes=NHW)
    model = onnx.load(bundle.model)
    weight = next(t for t in model.graph.initializer if len(t.dims) == 4)
    values = onnx.numpy_helper.to_array(weight).copy()
    values.view(np.int32).flat[0] ^= 1 << 15
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(model, tmp_path / "bent.onnx")
    with pytest.raises(ParityError):
        poolexport.verify(tmp_path / "bent.onnx", net)


def test_same_seed_gives_the_same_verdict(net, tmp_path):
    bundle = poolexport.export(net, IMAGE, tmp_path / "net", dynamic_shapes=NHW)
    assert poolexport.verify(bundle.path, net, seed=3) == poolexport.verify(bundle.path, net, seed=3)


def test_manifest_survives_unknown_fields(net, tmp_path):
    bundle = poolexport.export(net, IMAGE, tmp_path / "net", verify=False)
    assert bundle.manifest.verdict == "UNVERIFIED"
    text = json.loads(bundle.manifest.to_json()) | {"future": 1}
    assert Manifest.from_json(json.dumps(text)) == bundle.manifest
