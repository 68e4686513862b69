import os
import subprocess
import sys

import pytest
import yaml

from poolexport.errors import InputError, OutputError
from poolexport.handoff import deployment, docker, kserve


def test_an_inference_service_on_a_triton_repository(images, tmp_path):
    written = yaml.safe_load(kserve(deployment(images), tmp_path / "net.yaml", storage="pvc://models/r").read_text())
    assert (written["apiVersion"], written["kind"]) == ("serving.kserve.io/v1beta1", "InferenceService")
    assert written["metadata"]["name"] == "soft-net"
    model = written["spec"]["predictor"]["model"]
    assert model["modelFormat"] == {"name": "onnx"}
    assert (model["protocolVersion"], model["storageUri"]) == ("v2", "pvc://models/r")


def test_an_inference_service_of_an_image(images, tmp_path):
    written = yaml.safe_load(kserve(deployment(images), tmp_path / "net.yaml", image="reg/net:1").read_text())
    [container] = written["spec"]["predictor"]["containers"]
    assert container["image"] == "reg/net:1"
    assert container["readinessProbe"]["httpGet"]["path"] == "/v2/health/ready"


@pytest.mark.parametrize("where", [{}, {"storage": "s3://m", "image": "i"}, {"storage": "/tmp/models"}])
def test_a_service_needs_one_place_that_a_cluster_can_reach(images, tmp_path, where):
    with pytest.raises(InputError):
        kserve(deployment(images), tmp_path / "net.yaml", **where)
    assert not (tmp_path / "net.yaml").exists()


def test_files_are_not_replaced_unasked(images, tmp_path):
    model = deployment(images)
    (tmp_path / "net.yaml").write_text("mine")
    with pytest.raises(OutputError, match="exists"):
        kserve(model, tmp_path / "net.yaml", image="i")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="exists"):
        docker(model, tmp_path / "folder")
    with pytest.raises(OutputError, match="was not written by"):
        docker(model, tmp_path / "folder", force=True)
    kserve(model, tmp_path / "net.yaml", image="i", force=True)
    assert (tmp_path / "net.yaml").read_text() != "mine"


def test_the_image_holds_the_model_and_pinned_requirements(images, tmp_path):
    folder = docker(deployment(images), tmp_path / "image")
    lines = (folder / "requirements.txt").read_text().splitlines()
    assert all("==" in line for line in lines)
    assert not any(line.startswith(("torch", "onnxscript")) for line in lines)
    # what the process that tries a model imports is easily forgotten
    assert {"numpy", "onnx", "onnxruntime", "starlette", "granian", "click"} <= {
        line.partition("==")[0] for line in lines
    }
    assert {file.name for file in (folder / "model").iterdir()} == {"model.onnx", "manifest.json", "sample.npz"}
    assert "USER server" in (folder / "Dockerfile").read_text()


def test_the_packaged_server_starts_without_torch(images, tmp_path):
    folder = docker(deployment(images), tmp_path / "image")
    program = (
        # an editable installation finds its own package before any path
        "import sys; sys.meta_path[:] = [f for f in sys.meta_path if 'ScikitBuild' not in type(f).__name__];"
        "sys.modules['torch'] = None; sys.modules['onnxscript'] = None; sys.path.insert(0, '.');"
        "import poolexport; assert poolexport.__file__.startswith(sys.argv[1]), poolexport.__file__;"
        "print(poolexport.session('model').run(None, {'input': __import__('numpy').zeros((1, 3, 8, 8), 'f')})[0].shape)"
    )
    words = [sys.executable, "-P", "-c", program, os.fspath(folder)]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "(1, 4)", done.stderr
