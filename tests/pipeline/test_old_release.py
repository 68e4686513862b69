"""One older release of onnxruntime, in an environment that is really made: once, in this file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import poolexport
from poolexport.errors import InputError, ParityError
from poolexport.runtime import runtimes
from poolexport.runtime.releases import OtherRelease

X = torch.randn(1, 3, 9, 9, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="session")
def old(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OtherRelease]:
    """onnxruntime 1.20, in a cache of its own that the tests go on with."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POOLEXPORT_CACHE", str(tmp_path_factory.mktemp("cache")))
        try:
            [way] = runtimes(["1.20"])
        except InputError as error:
            if "cannot reach a registry" not in str(error):
                raise
            pytest.skip(f"no environment without the package registry: {error}")
        yield way


def test_the_last_patch_of_a_release_is_installed_and_runs_a_file(old: OtherRelease, tmp_path: Path):
    assert str(old) == "onnxruntime 1.20.1"
    model = nn.Sequential(nn.Conv2d(3, 4, 3), poolexport.nn.SoftPool2d(2)).eval()
    bundle = poolexport.export(model, X, tmp_path / "net")
    verdict = poolexport.verify(bundle.path, model, variants=[old])
    assert verdict.word == "PASS"
    assert sum(check.runtime == "onnxruntime 1.20.1" for check in verdict.checks) == 3


def test_an_environment_made_before_works_offline(old: OtherRelease, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    assert runtimes("1.20,1.20.1,newest") == (old,)
    with pytest.raises(InputError, match=r"onnxruntime 1\.21 cannot be had"):
        runtimes(["1.21"])
    assert len(os.listdir(old.environment.packages.parent)) == 1


def test_a_known_fault_of_a_release_is_caught_and_named(old: OtherRelease, tmp_path: Path):
    model = nn.AvgPool2d(3, 2, 1, ceil_mode=True).eval()
    x = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.onnx.export(model, (x,), tmp_path / "net.onnx", dynamo=True, opset_version=20, external_data=False)
    poolexport.verify(tmp_path / "net.onnx", model, x)
    with pytest.raises(ParityError, match=r"onnxruntime 1\.20\.1") as caught:
        poolexport.verify(tmp_path / "net.onnx", model, x, variants=[old])
    verdict = caught.value.verdict
    assert verdict.grade == "WRONG"
    assert {check.runtime for check in verdict.failures} == {"onnxruntime 1.20.1"}
    assert "known of onnxruntime 1.20: AveragePool of the model itself: " in verdict.failures[0].reason


def test_a_release_that_is_not_offered_is_refused_with_those_that_are(old: OtherRelease):
    with pytest.raises(InputError, match=r"onnxruntime 9\.9 cannot be had: the registry offers .* choose one of them"):
        runtimes(["9.9"])
