"""What is served must be what was verified; what is hostile is refused by a process that may be lost."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from poolexport.errors import InputError
from poolexport.serve import check, model
from poolexport.serve.check import facts, tried
from poolexport.serve.config import Limits, Settings
from poolexport.serve.state import places
from serve import models

LIMITS = Limits(load_seconds=20)
WEIGHTS = np.arange(3, dtype=np.float32).tobytes()


def refusal(path: Path, limits: Limits = LIMITS) -> str:
    """What a process of its own says about a model that it refuses."""
    with pytest.raises(InputError) as caught:
        tried(path, limits)
    return str(caught.value)


def contents(name: str):
    def write(folder: Path) -> Path:
        file = folder / "model.onnx"
        whole = models.mean(folder / "whole.onnx").read_bytes()
        file.write_bytes(
            {
                "nothing": b"",
                "half a model": whole[: len(whole) // 2],
                "a page": b"<!DOCTYPE html><html></html>",
                "noise": np.random.default_rng(0).bytes(4000),
                "an archive": b"PK\x03\x04" + bytes(60),
            }[name]
        )
        return file

    return write


def elsewhere(location: str):
    def write(folder: Path) -> Path:
        (folder.parent / f"{folder.name}-secret").write_bytes(WEIGHTS)
        return models.external(folder / "model.onnx", location.replace("SECRET", f"{folder.name}-secret"))

    return write


def linked(kind: str):
    def write(folder: Path) -> Path:
        secret = folder.parent / f"{folder.name}-secret"
        secret.mkdir()
        (secret / "w").write_bytes(WEIGHTS)
        if kind == "folder":
            (folder / "d").symlink_to(secret)
            return models.external(folder / "model.onnx", "d/w")
        if kind == "hard":
            os.link(secret / "w", folder / "w")
        else:
            (folder / "w").symlink_to(secret / "w")
        return models.external(folder / "model.onnx", "w")

    return write


def at(offset: str, length: str):
    def write(folder: Path) -> Path:
        (folder / "w").write_bytes(WEIGHTS)
        return models.external(folder / "model.onnx", "w", offset=offset, length=length)

    return write


def made(make, *words, **options):
    return lambda folder: make(folder / "model.onnx", *words, **options)


HOSTILE = {
    **{f"74 {name}": contents(name) for name in ("nothing", "half a model", "a page", "noise", "an archive")},
    "75 parent": elsewhere("../SECRET"),
    "75 absolute": elsewhere("/etc/hostname"),
    "75 device": elsewhere("/dev/zero"),
    "75 missing": elsewhere("gone"),
    "75 no name": elsewhere(""),
    "75 link": linked("soft"),
    "75 linked folder": linked("folder"),
    "75 hard link": linked("hard"),
    "76 negative offset": at("-4", "12"),
    "76 negative length": at("0", "-12"),
    "76 past the end": at("4", "12"),
    "76 petabyte": at("0", str(1 << 50)),
    "76 no number": at("0x0", "12"),
    "77 cycle": made(models.cycle),
    "80 unknown operator": made(models.pool, "NoSuchPool"),
    "80 opset 999": made(models.mean, opset=999),
    "80 ir 99": made(models.mean, ir_version=99),
    "81 short": made(models.weights, WEIGHTS[:-1], [3]),
    "81 long": made(models.weights, WEIGHTS + b"more", [3]),
    "81 negative length": made(models.weights, WEIGHTS, [-3]),
    "81 overflow": made(models.weights, WEIGHTS, [1 << 33, 1 << 33]),
    "82 kernel 0": made(models.pool, kernel_shape=[0, 0]),
    "82 kernel -3": made(models.pool, kernel_shape=[-3, -3]),
    "82 kernel 2^31": made(models.pool, kernel_shape=[1 << 31, 1 << 31]),
    "82 kernel of rank 3": made(models.pool, kernel_shape=[2, 2, 2]),
    "82 stride 0": made(models.pool, kernel_shape=[2, 2], strides=[0, 0]),
    "82 negative pads": made(models.pool, kernel_shape=[2, 2], pads=[-1, -1, -1, -1]),
    "82 dilation 2^40": made(models.pool, kernel_shape=[2, 2], dilations=[1 << 40, 1]),
    "82 index far outside": made(models.unpool),
    "82 p = 0": made(models.pool, "LpPool", kernel_shape=[2, 2], p=0),
    "83 NUL": made(models.named, "a\0b"),
    "83 new line": made(models.named, "a\nb"),
    "a type that cannot be sent": made(models.typed, TensorProto.BFLOAT16),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_models_are_refused(tmp_path, name):
    folder = tmp_path / "model"
    folder.mkdir()
    path = HOSTILE[name](folder)
    started = time.monotonic()
    with pytest.raises(InputError) as caught:
        facts(path)
    told = str(caught.value)
    assert told
    assert len(told) < 500
    assert time.monotonic() - started < 15


def test_what_wants_all_memory_is_refused_by_a_process_that_has_little(tmp_path):
    told = refusal(models.greedy(tmp_path / "model.onnx"))
    assert "is refused" in told
    assert "does not run" in told or "more memory" in told or "ended the process" in told


@pytest.mark.parametrize("make", [models.endless, models.laughs])
def test_what_never_ends_is_ended(tmp_path, make):
    started = time.monotonic()
    told = refusal(make(tmp_path / "model.onnx"), Limits(load_seconds=2))
    assert "2 s" in told or "ended the process" in told
    assert time.monotonic() - started < 15


def test_names_that_look_like_paths_are_only_names(tmp_path):
    assert tried(models.named(tmp_path / "model.onnx", "../../etc/passwd"), LIMITS).elements == 1


def test_weights_in_the_folder_are_fine(tmp_path):
    (tmp_path / "w").write_bytes(WEIGHTS)
    assert not tried(models.external(tmp_path / "model.onnx", "w"), LIMITS).batched


@pytest.fixture
def copied(bundles, tmp_path):
    shutil.copytree(bundles / "soft", tmp_path / "soft")
    return tmp_path / "soft"


def test_a_bundle_is_replayed_and_its_batch_axis_believed(copied):
    found = tried(copied, LIMITS)
    assert found.replayed
    assert found.batched
    assert found.verdict == "PASS"
    # a file without a manifest proves nothing about its batch
    assert not tried(models.mean(copied.parent / "mean.onnx"), LIMITS).batched


def test_an_edited_model_is_refused(copied):
    data = bytearray((copied / "model.onnx").read_bytes())
    data[-1] ^= 1
    (copied / "model.onnx").write_bytes(data)
    told = refusal(copied)
    assert "model.onnx" in told or "not an ONNX model" in told


def test_an_edited_manifest_is_refused(copied):
    said = json.loads((copied / "manifest.json").read_text())
    (copied / "manifest.json").write_text(json.dumps({**said, "checks": 10**6}))
    assert "manifest.json was edited" in refusal(copied)
    (copied / "manifest.json").write_text("{}")
    assert "manifest.json is missing or damaged" in refusal(copied)


@pytest.mark.parametrize("change", ["scale", "nan", "shape"])
def test_a_sample_that_is_not_reproduced_is_refused(copied, change):
    with np.load(copied / "sample.npz") as arrays:
        recorded = dict(arrays)
    y = recorded["output/y"]
    if change == "shape":
        y = y[..., :-1]
    elif change == "nan":
        y[0, 0, 0, 0] = np.nan
    else:
        y[0, 0, 0, 0] += 1e-2 * np.abs(y).max()
    np.savez(copied / "sample.npz", **{**recorded, "output/y": y})
    said = json.loads((copied / "manifest.json").read_text())
    from poolexport.bundle import sha256

    said["sha256"]["sample.npz"] = sha256(copied / "sample.npz")
    (copied / "manifest.json").write_text(json.dumps(said))
    assert "on its own sample, output 'y'" in refusal(copied)


def replaced(file: Path, data: bytes) -> None:
    """Another file of that name, with other times."""
    aside = file.with_suffix(".aside")
    aside.write_bytes(data)
    aside.replace(file)


@pytest.mark.parametrize("back", [False, True], ids=["changed", "changed and changed back"])
def test_a_file_that_changes_between_the_check_and_the_load_is_not_served(tmp_path, monkeypatch, back):
    file = models.mean(tmp_path / "model.onnx")
    checked = file.read_bytes()
    other = models.mean(tmp_path / "other.onnx", axes=(1, 3)).read_bytes()
    found = facts(file)
    assert model.open_model("model", "1", found, Settings(limits=LIMITS), together=0).facts == found
    opens = model.session

    def opened(path: Path, **options: Any) -> Any:
        replaced(file, other)
        session = opens(path, **options)
        if back:
            replaced(file, checked)
        return session

    with monkeypatch.context() as patched:
        patched.setattr(model, "session", opened)
        with pytest.raises(InputError, match="changed while it was loaded; load it again"):
            model.open_model("model", "1", found, Settings(limits=LIMITS), together=0)
    replaced(file, other)
    with pytest.raises(InputError, match="changed while it was loaded; load it again"):
        model.open_model("model", "1", found, Settings(limits=LIMITS), together=0)


def test_a_file_that_changes_during_the_check_is_refused(tmp_path, monkeypatch):
    file = models.mean(tmp_path / "model.onnx")
    first = check._no_foreign_files

    def read(path: Path) -> Any:
        replaced(file, models.mean(tmp_path / "other.onnx").read_bytes())
        return first(path)

    monkeypatch.setattr(check, "_no_foreign_files", read)
    with pytest.raises(InputError, match="changed while it was tried"):
        facts(file)


def test_names_and_versions(tmp_path):
    found = places(["net=a", "net:2=b", "c/soft.onnx", "d/bundle"])
    assert [(place.name, place.version) for place in found] == [
        ("net", "1"),
        ("net", "2"),
        ("soft", "1"),
        ("bundle", "1"),
    ]
    with pytest.raises(InputError, match="two models are a, version 1"):
        places(["x/a", "y/a"])
    with pytest.raises(InputError, match="cannot be the name of a model"):
        places(["a b=c"])
    with pytest.raises(InputError, match="versions are whole numbers"):
        places(["a:new=c"])
    with pytest.raises(InputError, match="there is no repository folder"):
        places([], tmp_path / "gone")


def test_serving_imports_no_torch(bundles):
    code = (
        "import sys, pathlib\n"
        "import poolexport.serve.process, poolexport.serve.worker, poolexport.serve.http, poolexport.serve.grpc\n"
        "from poolexport.serve.check import facts\n"
        f"facts(pathlib.Path({str(bundles / 'soft')!r}))\n"
        "print([m for m in ('torch', 'onnxscript', 'onnx_ir', 'poolexport_ops') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_running_server_holds_no_torch(server):
    for pid in (server.process.pid, *server.workers()):
        maps = Path(f"/proc/{pid}/maps").read_text()
        assert "onnxruntime" in maps
        assert "torch" not in maps.replace(str(Path.cwd()), "")
