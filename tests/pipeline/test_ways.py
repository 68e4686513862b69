"""Other forms of a file, other releases of onnxruntime, and other runtimes."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

import poolexport
from pipeline import otherwise
from poolexport.errors import InputError, ParityError
from poolexport.pipeline import _forms
from poolexport.pipeline.verify import Given
from poolexport.runtime import VARIANTS, Variant, environments, runtimes
from poolexport.runtime.environments import Environment
from poolexport.runtime.releases import OtherRelease

X = torch.randn(1, 3, 12, 11, generator=torch.Generator().manual_seed(0))
INLINED = Variant("all", 1, "inlined")


@pytest.fixture(scope="module")
def model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), poolexport.nn.SoftPool2d(2)).eval()


@pytest.fixture(scope="module")
def file(model: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ways") / "net.onnx"
    return poolexport.export(model, X, path, dynamic_shapes={0: "N", 2: "H", 3: "W"}).path


def release(tmp_path: Path, lines: str, **options: float) -> OtherRelease:
    return OtherRelease(otherwise.environment(tmp_path / "packages", lines), **options)


def test_a_file_with_functions_is_run_inlined_as_well(model: nn.Module, file: Path):
    verdict = poolexport.verify(file, model, variants=VARIANTS)
    assert {check.runtime for check in verdict.checks if check.runtime} == set(map(str, VARIANTS))
    assert [way.form for way in VARIANTS].count("inlined") == [way.form for way in VARIANTS].count("native") == 2
    assert verdict.word == "PASS"


def test_a_fault_in_the_inlined_form_only_is_caught(model: nn.Module, file: Path, monkeypatch: pytest.MonkeyPatch):
    def spoil(graph):
        for node in inlined(graph).graph:
            if node.op_type == "Exp":
                node.op_type = "Softplus"
        return graph

    inlined = _forms.inlined
    monkeypatch.setattr(_forms, "inlined", spoil)
    with pytest.raises(ParityError, match="inlined") as caught:
        poolexport.verify(file, model, variants=[Variant("all", 1), INLINED])
    assert {check.runtime for check in caught.value.verdict.failures} == {str(INLINED)}


def test_functions_that_cannot_be_written_out_are_told(model: nn.Module, file: Path, tmp_path: Path):
    proto = onnx.load(file)
    for function in proto.functions:
        for entry in function.opset_import:
            entry.version -= entry.domain == ""
    onnx.save(proto, tmp_path / "mixed.onnx")
    verdict = poolexport.verify(tmp_path / "mixed.onnx", model, variants=[INLINED])
    assert verdict.word == "PASS"
    [told] = verdict.untried
    assert told.startswith(f"{INLINED}: the function poolexport::")


def test_large_weights_stay_on_disk_when_a_file_is_inlined(model: nn.Module, file: Path, monkeypatch):
    monkeypatch.setattr(_forms.weights, "MUCH", 16)
    with _forms.Forms(file) as forms:
        made = forms.get("inlined")
        assert not onnx.load(made).functions
        assert made.with_name(made.name + ".data").is_file() or made.is_file()
    assert not made.exists()
    assert poolexport.verify(file, model, variants=[INLINED]).word == "PASS"


def test_another_release_answers_through_a_process_of_its_own(model: nn.Module, file: Path, tmp_path: Path):
    way = release(tmp_path, otherwise.TALKS)
    verdict = poolexport.verify(file, model, variants=[way])
    checks = [check for check in verdict.checks if check.runtime]
    assert {check.runtime for check in checks} == {"onnxruntime 9.9.9"}
    assert len(checks) == 4
    assert verdict.word == "PASS"
    with way.running(file.read_bytes()) as child:
        process = child._process
        [answer] = child.run(None, {"input": X.numpy()})
        np.testing.assert_allclose(answer, model(X).detach().numpy(), rtol=1e-4, atol=1e-6)
        with pytest.raises(RuntimeError, match="no_such_input"):
            child.run(None, {"no_such_input": X.numpy()})
        assert process.poll() is None
    assert process.returncode is not None


def test_a_release_that_answers_wrong_is_caught(model: nn.Module, file: Path, tmp_path: Path):
    with pytest.raises(ParityError, match=r"onnxruntime 9\.9\.9") as caught:
        poolexport.verify(file, model, variants=[release(tmp_path, otherwise.WRONG), Variant("none")])
    verdict = caught.value.verdict
    assert {check.runtime for check in verdict.failures} == {"onnxruntime 9.9.9"}
    assert len(verdict.failures) == 4
    assert verdict.grade in ("DEGRADED", "WRONG")


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (otherwise.DIES, "its process died of SIGSEGV"),
        (otherwise.LEAVES, "its process ended with code 7: no room"),
        (otherwise.HANGS, "its process gave no answer within 0.5 s and was ended"),
        (otherwise.REFUSES, "onnxruntime 9.9.9 failed: no kernel"),
        ("raise OSError('half a package')\n" + otherwise.RIGHT, "cannot load the file: its process ended with code 1"),
    ],
    ids=["dies", "leaves", "hangs", "refuses", "half"],
)
def test_a_process_that_is_lost_is_a_refusal(model: nn.Module, file: Path, tmp_path: Path, lines: str, told: str):
    way = release(tmp_path, lines, patience=0.5 if lines == otherwise.HANGS else 60.0)
    with pytest.raises(ParityError) as caught:
        poolexport.verify(file, model, variants=[way, Variant("none")])
    verdict = caught.value.verdict
    assert {check.runtime for check in verdict.failures} == {"onnxruntime 9.9.9"}
    assert all(check.judgements[0].grade == "REFUSED" for check in verdict.failures)
    assert told in verdict.failures[0].reason
    # the others go on
    assert any(check.runtime == "optimised: none" and check.passed for check in verdict.checks)


def test_a_process_that_dies_on_one_input_answers_the_next(model: nn.Module, file: Path, tmp_path: Path):
    lines = (
        "import os\nchanged = lambda run: lambda *given: run(*given) if given[2]['input'].max() < 1e3 else os._exit(9)"
    )
    with pytest.raises(ParityError) as caught:
        poolexport.verify(file, model, variants=[release(tmp_path, lines)])
    checks = [check for check in caught.value.verdict.checks if check.runtime]
    assert {check.values: check.passed for check in checks}["spike"] is False
    assert [check.values for check in checks if not check.passed] == ["spike"]
    assert len(checks) == 4


def test_no_process_survives_a_verifier_that_is_killed(file: Path, tmp_path: Path):
    environment = otherwise.environment(tmp_path / "packages", otherwise.HANGS)
    lines = f"""
import numpy as np, threading, time
from pathlib import Path
from poolexport.runtime.environments import Environment
from poolexport.runtime.releases import OtherRelease
with OtherRelease(Environment("9.9.9", Path({str(environment.packages)!r}))).running({str(file)!r}) as child:
    threading.Thread(target=child.run, args=(None, {{"input": np.zeros((1, 3, 12, 11), np.float32)}})).start()
    print(child._process.pid, flush=True)
    time.sleep(60)
"""
    verifier = subprocess.Popen([sys.executable, "-c", lines], stdout=subprocess.PIPE)
    pid = int(verifier.stdout.readline())
    verifier.send_signal(signal.SIGKILL)
    verifier.wait()
    verifier.stdout.close()
    ended = time.monotonic() + 20
    while _runs(pid) and time.monotonic() < ended:
        time.sleep(0.1)
    assert not _runs(pid)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # a process that ended and that nobody waited for is still listed
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return bool(state.strip()) and not state.startswith("Z")


def test_the_reference_implementation_is_asked(model: nn.Module, file: Path):
    verdict = poolexport.verify(file, model, variants=runtimes(["reference"]))
    assert sum(check.runtime.startswith("reference of onnx ") for check in verdict.checks) == 4
    assert (verdict.word, verdict.untried) == ("PASS", ())


class Twice(nn.Module):
    def forward(self, x):
        return 2 * nn.functional.gelu(x)


def gelu(path: Path) -> Path:
    """A file with an operator of onnxruntime's own."""
    nodes = [
        helper.make_node("Gelu", ["input"], ["half"], domain="com.microsoft"),
        helper.make_node("Add", ["half", "half"], ["output"]),
    ]
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, 12, 11]) for name in ("input", "output")]
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:])
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


def test_what_the_reference_lacks_is_told_and_does_not_count(tmp_path: Path):
    verdict = poolexport.verify(gelu(tmp_path / "gelu.onnx"), Twice().eval(), X, variants=runtimes("reference"))
    assert verdict.word == "PASS"
    assert not any(check.runtime for check in verdict.checks)
    [told] = verdict.untried
    assert told.startswith("reference of onnx ")
    assert "Gelu" in told


def test_openvino_is_asked_where_it_is_installed(model: nn.Module, file: Path):
    pytest.importorskip("openvino", reason="the file is run with OpenVINO, which is not installed")
    verdict = poolexport.verify(file, model, variants=runtimes("openvino"))
    assert sum(check.runtime.startswith("OpenVINO") for check in verdict.checks) == 4
    assert verdict.word == "PASS"


def test_installed_stands_for_what_is_here(monkeypatch: pytest.MonkeyPatch):
    has_openvino = importlib.util.find_spec("openvino") is not None
    assert len(runtimes("installed,reference")) == 1 + has_openvino


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("tflite", "'tflite' is no runtime; give releases of onnxruntime, as 1.25 or newest, reference, openvino"),
        ("", "'' is no runtime"),
        ("1.", "'1.' is no release of onnxruntime; give one as 1.25, 1.25.1 or newest"),
        ("1.20;rm", "is no release"),
    ],
)
def test_names_that_mean_nothing_are_refused(name: str, told: str):
    with pytest.raises(InputError, match=r".") as caught:
        runtimes([name])
    assert told in str(caught.value)


def test_openvino_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("poolexport.runtime.named.is_installed", lambda package: False)
    with pytest.raises(InputError, match="pip install openvino"):
        runtimes("openvino")
    assert [way.runtime for way in runtimes("installed")] == ["onnx.reference"]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of environments that is empty, and no package registry."""
    for name, value in {"POOLEXPORT_CACHE": str(tmp_path), "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": ""}.items():
        monkeypatch.setenv(name, value)
    return environments.cache()


def test_offline_an_environment_that_is_there_is_used_and_no_other_is_made(cache: Path):
    for name in ("1.20", "newest"):
        with pytest.raises(InputError, match=f"onnxruntime {name} cannot be had: pip finds no release for") as caught:
            runtimes([name])
        assert "try once online" in str(caught.value)
    assert not cache.exists() or not list(cache.iterdir())
    for version in ("1.20.0", "1.20.1", "1.9.9"):
        (cache / f"onnxruntime-{version}-{environments._suits()}").mkdir(parents=True)
    [way] = runtimes("1.20,1.20.1,newest")
    assert (str(way), way.release) == ("onnxruntime 1.20.1", (1, 20))


def test_an_environment_is_whole_or_not_there(cache: Path, monkeypatch: pytest.MonkeyPatch):
    def install(release: str, *words: str) -> str:
        Path(words[words.index("--target") + 1]).mkdir()
        return ""

    monkeypatch.setattr(environments, "_pip", install)
    with pytest.raises(InputError, match=r"onnxruntime 1\.20\.1 does not start in this Python: .*No module"):
        runtimes(["1.20.1"])
    assert list(cache.iterdir()) == []

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(environments, "_require_runs", interrupted)
    with pytest.raises(KeyboardInterrupt):
        runtimes(["1.20.1"])
    assert list(cache.iterdir()) == []

    def overtaken(version: str, packages: Path) -> None:
        place = cache / f"onnxruntime-{version}-{environments._suits()}"
        place.mkdir()
        (place / "theirs").touch()

    monkeypatch.setattr(environments, "_require_runs", overtaken)
    [way] = runtimes(["1.20.1"])
    assert isinstance(way.environment, Environment)
    assert [entry.name for entry in way.environment.packages.iterdir()] == ["theirs"]
    assert list(cache.iterdir()) == [way.environment.packages]


def test_a_cache_that_cannot_be_written_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("POOLEXPORT_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match=r"no environment for onnxruntime 1\.20\.1 could be made .* POOLEXPORT_CACHE"):
        runtimes(["1.20.1"])


def test_inputs_that_cannot_be_read_are_no_skipped_ones(model: nn.Module, file: Path):
    def read():
        raise InputError("c.npy cannot be read")

    with pytest.raises(InputError, match=r"c\.npy cannot be read"):
        poolexport.verify(file, model, data=[Given("c.npy", read)])
