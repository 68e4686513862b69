"""``poolexport inline``."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

import poolexport
from cli.conftest import SMALL, Run
from poolexport.bundle import METADATA_KEY, Manifest


def metadata(path: Path) -> dict[str, str]:
    return {entry.key: entry.value for entry in onnx.load(path, load_external_data=False).metadata_props}


def test_a_bundle_becomes_a_bundle_of_standard_operators(run: Run, bundle: Path, tmp_path: Path):
    out = tmp_path / "plain"
    found = json.loads(run("inline", bundle, "-o", out, "--json").stdout)
    assert found["functions"] == ["poolexport::SoftmaxPool"]
    assert found["compared"] == 9
    model = onnx.load(out / "model.onnx")
    assert not model.functions
    assert [entry.domain for entry in model.opset_import] == [""]
    assert {node.domain for node in model.graph.node} == {""}
    before = Manifest.from_json((bundle / "manifest.json").read_text())
    after = Manifest.from_json((out / "manifest.json").read_text())
    assert (before.form, after.form) == ("function", "inlined")
    assert (after.inputs, after.outputs, after.layers) == (before.inputs, before.outputs, before.layers)
    inspected = json.loads(run("inspect", out, "--json").stdout)
    assert inspected["intact"] is True
    assert inspected["form"] == "inlined"
    assert metadata(out / "model.onnx")["poolexport.form"] == "inlined"
    assert run("verify", out, *SMALL).exit_code == 0
    sample = np.load(out / "sample.npz")
    [answer] = poolexport.session(out).run(None, {"input": sample["input/input"]})
    np.testing.assert_allclose(answer, sample["output/output"], rtol=1e-6)


def test_a_bundle_becomes_a_file_and_what_others_wrote_in_it_stays(run: Run, bundle: Path, tmp_path: Path):
    source, out = Path(shutil.copytree(bundle, tmp_path / "copy")), tmp_path / "plain.onnx"
    model = onnx.load(source / "model.onnx")
    model.metadata_props.add(key="owner", value="me")
    model.graph.name, model.producer_name = "mine", "acme"
    onnx.save(model, source / "model.onnx")
    result = run("inline", source, "-o", out)
    assert result.exit_code == 0, result.output
    for words in ("plain.onnx", "poolexport::SoftmaxPool", "9 inputs, same answers"):
        assert words in result.stdout
    assert metadata(out)["owner"] == "me"
    written = onnx.load(out)
    assert (written.graph.name, written.producer_name) == ("mine", "acme")
    assert json.loads(metadata(out)[METADATA_KEY])["form"] == "inlined"


def test_weights_outside_stay_outside(run: Run, tmp_path: Path):
    words = ("--input", "1x3x16x16", "--external-data", "0", "--no-verify")
    assert run("export", "nets:wide", *words, "-o", tmp_path / "net.onnx").exit_code == 0
    found = run("inline", tmp_path / "net.onnx", "-o", tmp_path / "plain.onnx")
    assert found.exit_code == 0, found.output
    assert "plain.onnx.data" in found.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("net.onnx", "net.onnx.data", "plain.onnx", "plain.onnx.data")
    ]
    (tmp_path / "net.onnx.data").unlink()
    assert json.loads(run("inspect", tmp_path / "plain.onnx", "--json").stdout)["changed"] == []
    assert poolexport.session(tmp_path / "plain.onnx").get_inputs()[0].shape == [1, 3, 16, 16]


def test_a_file_is_replaced_only_when_told(run: Run, bundle: Path, tmp_path: Path):
    out = tmp_path / "plain.onnx"
    out.write_text("precious")
    result = run("inline", bundle, "-o", out)
    assert result.exit_code == 2
    assert "exists" in result.stderr
    assert out.read_text() == "precious"
    assert run("inline", bundle, "-o", out, "--force").exit_code == 0
    assert run("inline", out, "-o", out, "--force").exit_code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["plain.onnx"]


def test_a_single_file_does_not_become_a_bundle(run: Run, portable: Path, tmp_path: Path):
    result = run("inline", portable, "-o", tmp_path / "plain")
    assert result.exit_code == 2
    assert "let" in result.stderr
    assert not list(tmp_path.iterdir())


def function_file(path: Path, body: str = "Neg", calls: str = "F", opset: int = 18) -> Path:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node(calls, ["x"], ["y"], domain="own")],
        "g",
        [value("x", TensorProto.FLOAT, ["N", 2])],
        [value("y", TensorProto.FLOAT, None)],
    )
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
    own = [helper.make_opsetid("", opset)]
    function = helper.make_function("own", "F", ["a"], ["b"], [helper.make_node(body, ["a"], ["b"])], own)
    onnx.save(helper.make_model(graph, opset_imports=imports, functions=[function], ir_version=10), path)
    return path


def test_a_file_that_others_made_is_inlined_too(run: Run, tmp_path: Path):
    result = run("inline", function_file(tmp_path / "own.onnx"), "-o", tmp_path / "plain.onnx")
    assert "own::F" in result.stdout
    session = ort.InferenceSession(tmp_path / "plain.onnx")
    assert session.run(None, {"x": np.ones((1, 2), np.float32)})[0].tolist() == [[-1.0, -1.0]]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"calls": "G"}, "own::G has no body in the file"),
        ({"opset": 20}, "own::F is written in opset 20 of ai.onnx and the graph in 18"),
    ],
)
def test_what_cannot_be_inlined_is_refused(run: Run, tmp_path: Path, change: dict, told: str):
    result = run("inline", function_file(tmp_path / "own.onnx", **change), "-o", tmp_path / "plain.onnx")
    assert result.exit_code == 2
    assert told in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["own.onnx"]


def test_another_answer_is_not_written(run: Run, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from poolexport.pipeline import inline

    def spoil(model):
        for node in inlined(model).graph:
            if node.op_type == "Exp":
                node.op_type = "Softplus"
        return model

    inlined = inline.inlined
    monkeypatch.setattr(inline, "inlined", spoil)
    result = run("inline", bundle, "-o", tmp_path / "plain.onnx")
    assert result.exit_code == 2
    assert "inlined, output 'output' is another" in result.stderr
    assert not list(tmp_path.iterdir())
