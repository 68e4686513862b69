"""Weights in a file beside the model."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import poolexport
from poolexport.api import inline, read_manifest
from poolexport.bundle import WEIGHTS_KEY, sha256
from poolexport.errors import InputError, OutputError, ParityError
from poolexport.pipeline import export as export_stage
from poolexport.pipeline import weights

IMAGE = torch.randn(1, 3, 12, 14)


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 32, 3), poolexport.nn.SoftPool2d(2), nn.Conv2d(32, 24, 3)).eval()


@pytest.fixture(scope="module")
def exported(net, tmp_path_factory) -> Path:
    """A bundle and a single file, both with weights outside."""
    folder = tmp_path_factory.mktemp("exported")
    poolexport.export(net, IMAGE, folder / "net", external_data=True, dynamic_shapes={0: "N"})
    poolexport.export(net, IMAGE, folder / "net.onnx", external_data=1000, name="mine", producer="acme")
    return folder


@pytest.fixture
def copied(exported, tmp_path) -> Path:

    return Path(shutil.copytree(exported, tmp_path / "copied"))


def test_both_files_are_written_and_hashed(exported, net):
    bundle = exported / "net"
    assert sorted(os.listdir(bundle)) == ["manifest.json", "model.onnx", "model.onnx.data", "sample.npz"]
    assert sorted(os.listdir(exported)) == ["net", "net.onnx", "net.onnx.data"]
    digests = json.loads((bundle / "manifest.json").read_text())["sha256"]
    assert digests == {name: sha256(bundle / name) for name in ("model.onnx", "model.onnx.data", "sample.npz")}
    for model, data in ((bundle / "model.onnx", "model.onnx.data"), (exported / "net.onnx", "net.onnx.data")):
        assert model.stat().st_size < 10_000 < model.with_name(data).stat().st_size
        metadata = {entry.key: entry.value for entry in onnx.load(model, load_external_data=False).metadata_props}
        file = model.with_name(data)
        assert json.loads(metadata[WEIGHTS_KEY]) == {data: {"bytes": file.stat().st_size, "sha256": sha256(file)}}


def test_everything_reads_them(exported, net, tmp_path):
    for path in (exported / "net", exported / "net.onnx"):
        assert poolexport.verify(path, net).passed
        assert read_manifest(path).verdict == "PASS"
        with torch.no_grad():
            expected = net(IMAGE).numpy()
        name = poolexport.session(path).get_inputs()[0].name
        np.testing.assert_allclose(poolexport.session(path).run(None, {name: IMAGE.numpy()})[0], expected, atol=1e-6)
    assert inline(exported / "net", tmp_path / "plain").compared
    assert sorted(os.listdir(tmp_path / "plain")) == ["manifest.json", "model.onnx", "model.onnx.data", "sample.npz"]
    model = onnx.load(exported / "net.onnx")
    assert (model.graph.name, model.producer_name) == ("mine", "acme")


@pytest.mark.parametrize("target", ["net/model.onnx", "net.onnx"])
def test_missing_or_short_weights_are_one_clear_sentence(copied, net, target, tmp_path):
    model = copied / target
    data = model.with_name(model.name + ".data")
    content = data.read_bytes()
    path = model.parent if model.parent.name == "net" else model
    for change, told in ((content[:-1], "shorter than it was|bytes of"), (None, "missing")):
        if change is None:
            data.unlink()
        else:
            data.write_bytes(change)
        for call in (
            lambda: poolexport.session(path),
            lambda: poolexport.verify(path, net, IMAGE),
            lambda: poolexport.verify(path, net),
            lambda: read_manifest(path),
            lambda: inline(path, tmp_path / "plain.onnx"),
        ):
            with pytest.raises(InputError, match=told) as caught:
                call()
            assert "\n" not in str(caught.value)
            assert ".data" in str(caught.value) or "file of its weights" in str(caught.value)


def test_weights_outside_of_the_folder_are_not_read(copied):
    file = copied / "net.onnx"
    model = onnx.load(file, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../net.onnx.data"
    onnx.save(model, file)
    with pytest.raises(InputError, match="outside of its folder"):
        read_manifest(file)


def test_a_file_of_weights_that_is_no_part_of_an_export_is_kept(net, tmp_path):
    (tmp_path / "net.onnx.data").write_text("precious")
    for force in (False, True):
        with pytest.raises(OutputError, match=r"net\.onnx\.data exists and is no part of an earlier export"):
            poolexport.export(net, IMAGE, tmp_path / "net.onnx", external_data=True, force=force, verify=False)
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx.data"]
    assert (tmp_path / "net.onnx.data").read_text() == "precious"


def test_a_forced_export_replaces_both_or_takes_the_old_weights_away(copied, net):
    file = copied / "net.onnx"
    before = sha256(copied / "net.onnx.data")
    twice = nn.Sequential(net[0], net[1], nn.Conv2d(32, 24, 3)).eval()
    poolexport.export(twice, IMAGE, file, external_data=True, force=True)
    assert sha256(copied / "net.onnx.data") != before
    assert poolexport.verify(file, twice).passed
    poolexport.export(net, IMAGE, file, force=True, verify=False)
    assert sorted(os.listdir(copied)) == ["net", "net.onnx"]
    poolexport.export(net, IMAGE, copied / "net", force=True, verify=False)
    assert "model.onnx.data" not in os.listdir(copied / "net")


def test_a_rename_that_fails_leaves_the_old_pair(copied, net, monkeypatch):
    before = {name: sha256(copied / name) for name in ("net.onnx", "net.onnx.data")}
    replace = Path.replace

    def fails(self, target):
        if Path(target).name == "net.onnx":
            raise OSError(28, "No space left on device")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", fails)
    with pytest.raises(OutputError, match="No space left"):
        poolexport.export(net, IMAGE, copied / "net.onnx", external_data=True, force=True, verify=False)
    assert {name: sha256(copied / name) for name in ("net.onnx", "net.onnx.data")} == before
    assert sorted(os.listdir(copied)) == ["net", "net.onnx", "net.onnx.data"]


def test_a_wrong_file_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(export_stage, "translation_table", lambda **_: {})
    model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.AvgPool2d(2, divisor_override=3)).eval()
    with pytest.raises(ParityError):
        poolexport.export(model, IMAGE, tmp_path / "net", external_data=True)
    assert not list(tmp_path.iterdir())


def test_too_many_weights_go_outside_by_themselves(net, tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "AUTO", 1000)
    monkeypatch.setattr(weights, "LARGEST", 2000)
    poolexport.export(net, IMAGE, tmp_path / "net.onnx", verify=False)
    assert sorted(os.listdir(tmp_path)) == ["net.onnx", "net.onnx.data"]
    with pytest.raises(InputError, match=r"one \.onnx file holds at most 2; leave out external_data=False"):
        poolexport.export(net, IMAGE, tmp_path / "whole.onnx", external_data=False, verify=False)


@pytest.mark.parametrize("choice", ["yes", -1, None, 1.5])
def test_other_choices_are_refused(net, tmp_path, choice):
    with pytest.raises(InputError, match="external_data must be True, False, 'auto', or a number of bytes"):
        poolexport.export(net, IMAGE, tmp_path / "net", external_data=choice)


def test_weights_that_were_exchanged_are_told(copied):
    from click.testing import CliRunner

    from poolexport.cli import main

    data = copied / "net.onnx.data"
    data.write_bytes(bytes(len(data.read_bytes())))
    found = CliRunner().invoke(main, ["inspect", str(copied / "net.onnx"), "--json"])
    assert json.loads(found.stdout)["changed"] == ["net.onnx.data"]


def test_sources_are_kept_only_when_asked(net, tmp_path):
    here = os.path.dirname(torch.__file__).encode()
    for keep in (False, True):
        bundle = poolexport.export(net, IMAGE, tmp_path / f"{keep}.onnx", keep_sources=keep, verify=False)
        content = bundle.model.read_bytes()
        assert (b"stack_trace" in content) == keep
        assert (here in content) == keep or not keep
