"""``poolexport export`` on input that is right."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper
from safetensors.torch import load_file

from cli.conftest import SMALL, Run
from poolexport.bundle import Manifest


def test_a_bundle_holds_model_manifest_and_sample(bundle: Path):
    assert sorted(path.name for path in bundle.iterdir()) == ["manifest.json", "model.onnx", "sample.npz"]


def test_dynamic_letters_become_axes(bundle: Path):
    manifest = Manifest.from_json((bundle / "manifest.json").read_text())
    assert manifest.inputs[0].shape == ("N", 3, "H", "W")


def test_the_summary_says_what_was_made_and_proven(run: Run, tmp_path: Path):
    result = run("export", *SMALL, "--input", "1x3x16x16", "--dynamic", "n,h", "-o", tmp_path / "net")
    assert result.exit_code == 0
    assert result.stderr == ""
    for words in (
        f"{tmp_path}/net/model.onnx",
        "opset         20",
        "function:",
        "float32  Nx3xHx16",
        "N, H",
        "2  SoftPool2d:",
        "3  nn.MaxPool2d",
        "worst relative error",
        "PASS",
        "poolexport.session(",
    ):
        assert words in result.stdout


def test_json_is_one_document_whatever_the_model_prints(run: Run, tmp_path: Path):
    path = tmp_path / "net.onnx"
    result = run("export", "nets:talkative", "--input", "1x3x16x16", "--dtype", "float16", "-o", path, "--json")
    found = json.loads(result.stdout)
    assert found["verdict"] == "PASS"
    assert found["manifest"]["inputs"][0]["dtype"] == "FLOAT16"
    assert [layer["layer"] for layer in found["pooling"]] == ["SoftPool2d", "nn.MaxPool2d"]
    assert result.stderr == "building\n"


def test_json_is_one_document_whatever_other_programs_and_c_print(source: Path, tmp_path: Path):
    words = [sys.executable, "-B", "-m", "poolexport", "export", "loud.py:small", "--input", "1x3x16x16"]
    words += ["--no-verify", "--json", "-o", str(tmp_path / "net")]
    result = subprocess.run(words, cwd=source, capture_output=True, text=True, timeout=120, check=False)
    assert json.loads(result.stdout)["verdict"] == "UNVERIFIED", result.stderr
    assert "from a program" in result.stderr


def test_a_portable_file_has_no_functions_and_names_its_rule(run: Run, portable: Path):
    manifest = json.loads(run("inspect", portable, "--json").stdout)
    assert manifest["form"] == "inlined"
    assert list(manifest["opsets"]) == ["ai.onnx"]
    (layer,) = manifest["layers"]
    assert layer["method"] == "stochastic"
    assert layer["inference"]


def test_inputs_are_given_to_the_arguments_they_name(run: Run, tmp_path: Path):
    words = ("--input", "depth=1x1x16x16", "--input", "image=1x3x16x16", "--dynamic", "N", "--no-verify")
    found = json.loads(run("export", "nets:Two", *words, "-o", tmp_path / "two.onnx", "--json").stdout)
    shapes = {port["name"]: port["shape"] for port in found["manifest"]["inputs"]}
    assert list(shapes) == ["image", "depth"]
    assert shapes == {"image": ["N", 3, 16, 16], "depth": ["N", 1, 16, 16]}


def test_other_names_are_names_for_the_file(run: Run, tmp_path: Path):
    run("export", "nets:model", "--input", "picture=1x3x16x16", "--no-verify", "-o", tmp_path / "net.onnx")
    (port,) = ort.InferenceSession(tmp_path / "net.onnx").get_inputs()
    assert port.name == "picture"


def test_the_hint_is_python_whatever_the_input_is_called(run: Run, tmp_path: Path):
    words = ("--input", "a=b=1x3x16x16", "--no-verify", "-o", tmp_path / "net.onnx")
    hint = run("export", "nets:model", *words).stdout.splitlines()[-1]
    assert hint.endswith(".run(None, {'a=b': x0})")


def test_a_model_without_functions_is_not_said_to_have_them(run: Run, tmp_path: Path):
    path = tmp_path / "net.onnx"
    result = run("export", "nets:no_pooling", "--input", "1x3x16x16", "--no-verify", "-o", path)
    assert "form          plain: " in result.stdout
    assert "form         plain: " in run("inspect", path).stdout


def test_adopted_layers_are_listed_and_in_the_manifest(run: Run, tmp_path: Path):
    words = ("export", "nets.py:foreign", "--input", "1x3x16x16", "--dynamic", "N", "--adopt")
    path = tmp_path / "net"
    result = run(*words, "--choice", "GeM=flat", "-o", path)
    assert result.exit_code == 0, result.output
    for line in (
        "adopted       1  MaxPool2d is MaxPool2d: the largest cell of every window (same answers in float64",
        "3  GeM is GeMPool2d: the generalized mean of every plane",
        "kept          2  RotAttentionPool2d: it turns queries",
    ):
        assert line in result.stdout
    assert json.loads((path / "manifest.json").read_text())["layers"] == {"1": "max", "3": "gem"}
    # The file is that of the network as it was written, too.
    assert run("verify", path, "nets.py:foreign").exit_code == 0
    found = json.loads(run(*words, "--no-verify", "-o", tmp_path / "again", "--json").stdout)
    assert [(record["path"], record["proven"]) for record in found["adopted"]] == [("1", True), ("3", True)]
    assert [record["path"] for record in found["kept"]] == ["2"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--choice", "GeM=flat"), "it needs --adopt"),
        (("--adopt", "--choice", "GeM"), "'GeM' is not LAYER=MEANING"),
        (("--adopt", "--choice", "GeM=wide"), "there is no choice 'wide'"),
        (("--adopt", "--choice", "9=keep"), "no layer that may be replaced has that path"),
        (("--adopt", "--choice", "GeM=keepdim"), "does not compute what our layer of that name does"),
    ],
)
def test_choices_that_fit_nothing_are_refused(run: Run, tmp_path: Path, words: tuple[str, ...], told: str):
    result = run("export", "nets.py:foreign", "--input", "1x3x16x16", *words, "-o", tmp_path / "net")
    assert result.exit_code == 2
    assert told in result.stderr
    assert not list(tmp_path.iterdir())


def test_without_verification_the_file_says_so(run: Run, tmp_path: Path):
    result = run("export", "nets:model", "--input", "1x3x16x16", "--no-verify", "-o", tmp_path / "net")
    assert "UNVERIFIED" in result.stdout
    assert json.loads((tmp_path / "net" / "manifest.json").read_text())["verdict"] == "UNVERIFIED"


def test_the_folder_is_named_after_the_factory_and_force_replaces_it(run: Run, source: Path):
    words = ("export", "nets:model", "--input", "1x3x16x16", "--no-verify")
    assert run(*words).exit_code == 0
    assert (source / "model" / "model.onnx").is_file()
    assert run(*words).exit_code == 2
    assert run(*words, "--force").exit_code == 0


@pytest.mark.parametrize(
    ("file", "told"),
    [("nested.pt", "nested.pt, under 'state_dict'"), ("parallel.pth", "under 'model', without 'module.'")],
)
def test_weights_inside_a_checkpoint_are_found_and_said(run: Run, tmp_path: Path, file: str, told: str):
    words = ("--weights", file, "--input", "1x3x16x16", "--no-verify", "-o", tmp_path / "net.onnx")
    result = run("export", "nets:small", *words)
    assert result.exit_code == 0
    assert told in result.stdout


@pytest.mark.parametrize(("dtype", "told"), [("float64", ""), ("float32", ", rounded from float64 to float32")])
def test_weights_keep_their_precision_or_the_loss_is_said(run: Run, tmp_path: Path, dtype: str, told: str):
    words = ("nets.py:rows", "--weights", "rows.safetensors")
    path = tmp_path / "rows.onnx"
    result = run("export", *words, "--input", "1x2x4x16", "--dtype", dtype, "-o", path, "--json")
    assert json.loads(result.stdout)["weights"] == f"rows.safetensors{told}"
    bias = next(value for value in onnx.load(path).graph.initializer if value.name == "0.bias")
    exact = load_file("rows.safetensors")["0.bias"]
    assert numpy_helper.to_array(bias).tolist() == (exact if dtype == "float64" else exact.float()).tolist()
    verified = run("verify", path, *words, "--rtol", "1e-14" if dtype == "float64" else "1e-5", "--json")
    assert verified.exit_code == 0, verified.output


def test_a_file_that_computes_something_else_is_not_written(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import onnx_ir as ir

    from poolexport.pipeline import optimise

    def spoil(model: ir.Model, **_: object) -> ir.Model:
        bias = model.graph.initializers["0.bias"]
        assert bias.const_value is not None
        bias.const_value = ir.tensor(bias.const_value.numpy() + 0.01, name="0.bias")
        return model

    monkeypatch.setattr(optimise, "optimise", spoil)
    result = run("export", *SMALL, "--input", "1x3x16x16", "-o", tmp_path / "net", "--json")
    found = json.loads(result.stdout)
    assert result.exit_code == 1
    assert found["error"]["type"] == "ParityError"
    assert found["verdict"] == "FAIL"
    assert len(found["checks"]) > 5
    assert not list(tmp_path.iterdir())
