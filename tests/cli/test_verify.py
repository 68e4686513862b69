"""``poolexport verify``."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from cli.conftest import SMALL, Run
from poolexport.runtime import VARIANTS
from poolexport.stress import EXTREMES, NOT_NUMBERS


def test_a_bundle_follows_its_model(run: Run, bundle: Path):
    result = run("verify", bundle, *SMALL)
    assert result.exit_code == 0
    assert result.stderr == ""
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["values", "sizes", "checks", "worst", "error", "bound"]
    assert any(line.startswith("normal") and "other sizes" in line and line.endswith("PASS") for line in lines)
    assert any("optimised: none, 2 threads" in line and line.endswith("PASS") for line in lines)
    assert lines[-2].startswith("WITHIN ROUNDING: at most ")
    assert lines[-1].startswith("PASS  ")


def test_json_has_every_check(run: Run, bundle: Path):
    found = json.loads(run("verify", bundle, *SMALL, "--json").stdout)
    assert found["verdict"] == "PASS"
    assert found["truth"] == "float64"
    assert found["grade"] == "WITHIN ROUNDING"
    own = [check for check in found["checks"] if not check["runtime"] and check["values"] not in EXTREMES]
    assert len(own) == json.loads((bundle / "manifest.json").read_text())["checks"]
    assert len(found["checks"]) == len(own) + len(EXTREMES) + len(VARIANTS) * 4
    assert {"example", "normal", "cliff"} <= {check["values"] for check in found["checks"]}
    assert all(check["passed"] and check["outputs"][0]["bound"] > 0 for check in found["checks"] if check["counts"])
    assert {check["values"] for check in found["checks"] if not check["counts"]} == NOT_NUMBERS


def test_other_weights_are_a_difference(run: Run, bundle: Path):
    result = run("verify", bundle, "nets.py:small")
    assert result.exit_code == 1
    assert result.stdout.startswith("FAIL  example values")
    assert "give --weights" in result.stdout
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("error: the file does not compute what the model computes")


def test_a_difference_in_json_has_the_error_and_every_check(run: Run, bundle: Path):
    result = run("verify", bundle, "nets.py:small", "--json")
    found = json.loads(result.stdout)
    assert result.exit_code == found["error"]["exit_code"] == 1
    assert found["verdict"] == "FAIL"
    assert not any(check["passed"] for check in found["checks"])


def test_bounds_may_be_replaced(run: Run, bundle: Path):
    assert run("verify", bundle, *SMALL, "--rtol", "0", "--atol", "0").exit_code == 1
    assert run("verify", bundle, "nets.py:small", "--rtol", "1e6").exit_code == 0


def test_the_same_seed_gives_the_same_verdict(run: Run, bundle: Path):
    first, again, other = (run("verify", bundle, *SMALL, "--seed", seed, "--json").stdout for seed in (3, 3, 4))
    assert first == again
    assert first != other


def test_a_file_that_does_not_describe_itself_is_verified_on_the_shapes_given(run: Run, bundle: Path, tmp_path: Path):
    model = onnx.load(bundle / "model.onnx")
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "foreign.onnx")
    words = ("verify", tmp_path / "foreign.onnx", *SMALL)
    assert run(*words, "--input", "2x3x16x16").exit_code == 0
    result = run(*words)
    assert result.exit_code == 2
    assert "give --input 1x3x32x32" in result.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("nope.onnx", "nets.py:small"), "there is no model at nope.onnx"),
        (("nets.py", "nets.py:small"), "nets.py is not an ONNX model"),
        ((".", "nets.py:small"), "is a folder without model.onnx"),
        (("BUNDLE", "nets.py:smal"), "did you mean small?"),
        (("BUNDLE", "nets.py:small", "--weights", "missing.pt"), "1 missing: 0.bias"),
        (("BUNDLE", "nets.py:small", "--input", "2x3x16"), "has shape"),
        (("BUNDLE", "nets.py:small", "--input", "image=2x3x16x16"), "no input 'image'; there is input"),
        (("BUNDLE", "nets.py:small", "--factor", "-1"), "--factor -1.0 is not a bound"),
        (("BUNDLE", "nets.py:small", "--worse-by", "nan"), "--worse-by nan is not a bound"),
        (("BUNDLE", "nets.py:small", "--rtol", "nan"), "--rtol nan is not a bound"),
        (("BUNDLE", "nets.py:stochastic", "--seed", "x"), "'x' is not a valid integer"),
        (("BUNDLE", "nets.py:small", "--seed", "-1"), "-1 is not in the range"),
        (("BUNDLE", "nets.py:small", "--seed", str(2**32)), "is not in the range"),
    ],
)
def test_bad_input_is_one_sentence(run: Run, bundle: Path, words: tuple[str, ...], told: str):
    result = run("verify", *(str(bundle) if word == "BUNDLE" else word for word in words))
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("error: ")
    assert told in result.stderr


def test_arrays_and_images_are_tried_as_well(run: Run, bundle: Path, tmp_path: Path):
    np.save(tmp_path / "a.npy", np.ones((2, 3, 9, 9), np.float32))
    Image.new("RGB", (12, 10), (9, 8, 7)).save(tmp_path / "b.png")
    result = run("verify", bundle, *SMALL, "--data", tmp_path, "--no-extremes", "--json", "--mean", "0.5")
    checks = {check["values"]: check["shapes"] for check in json.loads(result.stdout)["checks"]}
    assert (checks["a.npy"], checks["b.png"]) == ([[2, 3, 9, 9]], [[1, 3, 10, 12]])
    assert "nan" not in checks
    (tmp_path / "c.npy").write_bytes(b"no array")
    result = run("verify", bundle, *SMALL, "--data", tmp_path)
    assert result.exit_code == 2
    assert "c.npy cannot be read: it holds no plain array" in result.stderr


def test_answers_to_nan_are_told_and_count_where_that_is_asked_for(run: Run, bundle: Path):
    # onnxruntime's MaxPool passes over NaN
    told = run("verify", bundle, *SMALL)
    assert told.exit_code == 0
    assert "answers otherwise than torch to nan" in told.stdout
    assert run("verify", bundle, *SMALL, "--strict").exit_code == 1


def test_the_layer_to_blame_is_named_and_the_smallest_input_kept(run: Run, bundle: Path, tmp_path: Path):
    witness, page = tmp_path / "wrong.npz", tmp_path / "report.json"
    result = run("verify", bundle, "nets.py:small", "--witness", witness, "--report", page)
    assert result.exit_code == 1
    assert "GUILTY  0 (Conv2d)" in result.stdout
    assert f"witness: {witness}" in " ".join(result.stdout.split())
    told = json.loads(page.read_text())
    assert [culprit["path"] for culprit in told["culprits"]] == ["0"]
    assert told["witness"]["script"] == str(tmp_path / "wrong.py")
    assert subprocess.run([sys.executable, tmp_path / "wrong.py"], capture_output=True, check=False).returncode == 1
    assert "exists" in run("verify", bundle, "nets.py:small", "--witness", witness).stderr
    assert "GUILTY" not in run("verify", bundle, "nets.py:small", "--no-locate").stdout
    assert "nobody can tell" in run("verify", bundle, bundle, "--witness", tmp_path / "other.npz").stderr
