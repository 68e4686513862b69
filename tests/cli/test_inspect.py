"""``poolexport inspect``."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from cli.conftest import Run
from poolexport.cli import _graph
from poolexport_ops import DOMAIN


def save(path: Path, *nodes: onnx.NodeProto, opset: int = 18) -> Path:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "g", [value("x", TensorProto.FLOAT, ["N", 2, 8, 8])], [value("y", TensorProto.FLOAT, None)]
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid(DOMAIN, 1)]
    onnx.save(helper.make_model(graph, opset_imports=imports), path)
    return path


def test_the_facts_that_are_said_twice_agree():
    assert _graph.DOMAIN == DOMAIN


def test_json_agrees_with_the_manifest(run: Run, bundle: Path):
    found = json.loads(run("inspect", bundle, "--json").stdout)
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert found["inputs"] == [{"name": "input", "dtype": "float32", "shape": ["N", 3, "H", "W"]}]
    assert found["opsets"] == {"ai.onnx": 20, "poolexport": 1}
    assert found["form"] == manifest["form"] == "function"
    assert found["verdict"] == "PASS"
    assert found["bytes"] == (bundle / "model.onnx").stat().st_size
    assert found["intact"] is True
    assert found["layers"] == [{"path": "2", "method": "softpool", "inference": None}]
    assert found["manifest"] == {key: value for key, value in manifest.items() if key != "sha256"}


def test_every_pooling_operator_is_listed_with_what_runs_it(run: Run, bundle: Path):
    operators = {o["operator"]: o for o in json.loads(run("inspect", bundle, "--json").stdout)["operators"]}
    assert operators["poolexport::SoftmaxPool"]["runs"] == "native kernel"
    assert operators["poolexport::SoftmaxPool"]["attributes"]["kernel_shape"] == [2, 2]
    assert operators["MaxPool"]["runs"] == "standard kernel"
    assert operators["MaxPool"]["count"] == 1


def test_the_table_has_layers_operators_and_verdict(run: Run, bundle: Path):
    result = run("inspect", bundle)
    assert result.exit_code == 0
    for words in ("PASS (", "softpool", "poolexport::SoftmaxPool", "kernel_shape=2x2", "as exported  yes"):
        assert words in result.stdout


def test_a_single_file_says_the_same_from_its_metadata(run: Run, portable: Path):
    found = json.loads(run("inspect", portable, "--json").stdout)
    assert found["verdict"] == "PASS"
    assert found["intact"] is None
    assert found["layers"][0]["method"] == "stochastic"


@pytest.mark.parametrize("name", ["model.onnx", "sample.npz"])
def test_an_edited_bundle_is_reported(run: Run, bundle: Path, tmp_path: Path, name: str):
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    if name == "model.onnx":
        model = onnx.load(copy / name)
        model.doc_string = "edited"
        onnx.save(model, copy / name)
    else:
        (copy / name).unlink()
    result = run("inspect", copy)
    assert f"NO: {name} changed after the export" in result.stdout
    found = json.loads(run("inspect", copy, "--json").stdout)
    assert found["intact"] is False
    assert found["changed"] == [name]


def test_a_bundle_without_a_readable_manifest_says_so(run: Run, bundle: Path, tmp_path: Path):
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    (copy / "manifest.json").write_text("{")
    assert json.loads(run("inspect", copy, "--json").stdout)["intact"] is False
    (copy / "manifest.json").unlink()
    assert json.loads(run("inspect", copy, "--json").stdout)["intact"] is None


def test_equal_operators_are_counted_together_and_random_ones_flagged(run: Run, tmp_path: Path):
    pool = {"kernel_shape": [2, 2], "strides": [1, 1]}
    path = save(
        tmp_path / "random.onnx",
        helper.make_node("AveragePool", ["x"], ["a"], **pool),
        helper.make_node("AveragePool", ["a"], ["b"], **pool),
        helper.make_node("RandomNormalLike", ["b"], ["c"]),
        helper.make_node("GlobalLpPool", ["c"], ["y"], p=2),
    )
    found = json.loads(run("inspect", path, "--json").stdout)
    assert {o["operator"]: o["count"] for o in found["operators"]} == {
        "AveragePool": 2,
        "RandomNormalLike": 1,
        "GlobalLpPool": 1,
    }
    assert found["random"] == ["RandomNormalLike"]
    assert found["verdict"] is None
    assert "RandomNormalLike: the answer differs from run to run" in run("inspect", path).stdout


def test_a_node_of_ours_without_a_body_is_said_to_run_nowhere(run: Run, tmp_path: Path):
    path = save(tmp_path / "bare.onnx", helper.make_node("SoftmaxPool", ["x", "x"], ["y"], domain=DOMAIN))
    (operator,) = json.loads(run("inspect", path, "--json").stdout)["operators"]
    assert operator["runs"] == _graph.NOTHING


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"\x08\x0a", b"\x00" * 100], ids=["empty", "text", "no graph", "zeros"]
)
def test_a_malformed_file_is_one_sentence(run: Run, tmp_path: Path, content: bytes):
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    result = run("inspect", path)
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith(f"error: {path} is not an ONNX model: ")


def test_a_truncated_file_is_one_sentence(run: Run, bundle: Path, tmp_path: Path):
    path = tmp_path / "cut.onnx"
    path.write_bytes((bundle / "model.onnx").read_bytes()[:1500])
    result = run("inspect", path)
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("", "{"),
        ("", "[]"),
        ("layers", []),
        ("layers", {"2": 3}),
        ("checks", "many"),
        ("verdict", None),
        ("opset", [1]),
    ],
)
def test_a_damaged_manifest_in_the_metadata_hides_nothing_else(
    run: Run, portable: Path, tmp_path: Path, field: str, value: object
):
    path = tmp_path / "damaged.onnx"
    model = onnx.load(portable)
    entry = next(p for p in model.metadata_props if p.key == "poolexport.manifest")
    entry.value = json.dumps({**json.loads(entry.value), field: value}) if field else str(value)
    onnx.save(model, path)
    result = run("inspect", path)
    assert result.exit_code == 0, result.stderr
    assert f"unknown: the manifest in {path} is damaged: " in result.stdout
    assert "float32  1x3x16x16" in result.stdout
    found = json.loads(run("inspect", path, "--json").stdout)
    assert found["verdict"] is None
    assert found["damage"]
    verified = run("verify", path, "nets.py:stochastic")
    assert verified.exit_code == 2
    assert verified.stderr.startswith(f"error: the manifest in {path} is damaged: ")


@pytest.mark.parametrize("change", [{"sha256": {}}, {"verdict": "UNVERIFIED"}, {"opset": 18}, {"more": 1}])
def test_an_edited_manifest_is_reported(run: Run, bundle: Path, tmp_path: Path, change: dict[str, object]):
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    facts = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps({**facts, **change}))
    assert json.loads(run("inspect", copy, "--json").stdout)["changed"] == ["manifest.json"]
    (copy / "manifest.json").write_text(json.dumps(facts))
    assert json.loads(run("inspect", copy, "--json").stdout)["intact"] is True


def test_shapes_that_the_file_does_not_say_are_unknown(run: Run, tmp_path: Path):
    path = save(tmp_path / "x.onnx", helper.make_node("SequenceAt", ["s", "i"], ["y"]))
    model = onnx.load(path)
    sequence = helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, None)
    model.graph.input.extend([sequence, helper.make_tensor_value_info("i", TensorProto.INT64, [])])
    onnx.save(model, path)
    lines = [line.split(maxsplit=2) for line in run("inspect", path).stdout.splitlines()]
    assert ["input", "s", "sequence of float32  unknown shape"] in lines
    assert ["input", "i", "int64  scalar"] in lines
    assert ["output", "y", "float32  unknown shape"] in lines


def test_functions_that_nobody_calls_do_not_count_and_others_do(run: Run, tmp_path: Path):
    path = save(tmp_path / "x.onnx", helper.make_node("Relu", ["x"], ["y"]))
    model = onnx.load(path)
    body = [helper.make_node("RandomUniformLike", ["a"], ["b"])]
    model.functions.append(helper.make_function("own", "Noise", ["a"], ["b"], body, [helper.make_opsetid("", 18)]))
    model.opset_import.append(helper.make_opsetid("own", 1))
    onnx.save(model, path)
    assert json.loads(run("inspect", path, "--json").stdout)["random"] == []
    model.graph.node[0].CopyFrom(helper.make_node("Noise", ["x"], ["y"], domain="own"))
    onnx.save(model, path)
    assert json.loads(run("inspect", path, "--json").stdout)["random"] == ["RandomUniformLike"]


def test_an_operator_that_does_not_exist_has_no_kernel(run: Run, tmp_path: Path):
    nodes = [helper.make_node("QuickPool", ["x"], ["a"]), helper.make_node("GlobalMaxPool", ["a"], ["y"])]
    operators = json.loads(run("inspect", save(tmp_path / "x.onnx", *nodes), "--json").stdout)["operators"]
    assert [o["runs"] for o in operators] == [_graph.UNKNOWN, "standard kernel"]


def test_names_are_shown_and_not_obeyed(run: Run, tmp_path: Path):
    path = save(tmp_path / "x.onnx", helper.make_node("Relu", ["x"], ["y"]))
    model = onnx.load(path)
    model.graph.input[0].name = model.graph.node[0].input[0] = "\x1b[31m[bold]:smile:\n"
    onnx.save(model, path)
    assert "\\x1b[31m[bold]:smile:\\n  float32" in run("inspect", path).stdout
