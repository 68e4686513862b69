"""What can be seen of a batch on Ray without Ray; a cluster is tried by ``tests/cluster/oracles.py``."""

from __future__ import annotations

import io
import os
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from poolexport import cluster as nodes
from poolexport.cli.run import run as command
from poolexport.errors import InputError, MissingExtraError
from poolexport.offline import Picture, cluster
from poolexport.offline.items import Item
from poolexport.offline.running import Worker
from serve import models


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Files that a mean of planes takes, and some that it does not."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "in"
    folder.mkdir()
    np.save(folder / "one.npy", rng.standard_normal((1, 3, 4, 5), np.float32))
    np.save(folder / "many.npy", rng.standard_normal((11, 3, 4, 5), np.float32))
    np.savez(folder / "named.npz", x=rng.standard_normal((3, 4, 5), np.float32))
    Image.fromarray(rng.integers(0, 256, (4, 5, 3), np.uint8)).save(folder / "picture.png")
    np.save(folder / "rank.npy", np.zeros((3, 3), np.float32))
    (folder / "empty.npy").touch()
    (folder / "text.npz").write_bytes(b"no archive")
    (folder / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0")
    return sorted(folder.iterdir())


def test_what_is_in_a_file_is_answered_as_the_file_is(files: list[Path], tmp_path: Path) -> None:
    worker = Worker(models.mean(tmp_path / "mean.onnx"), 4, Picture())
    here = [Item(file, PurePosixPath(str(place))) for place, file in enumerate(files)]
    there = [replace(item, content=item.path.read_bytes()) for item in here]
    kept, other = cluster._Kept(), cluster._Kept()
    failed = worker.answer(here, kept)
    assert worker.answer(there, other) == failed
    assert {failure.path.name for failure in failed} == {"cut.png", "empty.npy", "rank.npy", "text.npz"}
    assert len(kept.archives) == 4
    for place, archive in kept.archives.items():
        with np.load(io.BytesIO(archive)) as left, np.load(io.BytesIO(other.archives[place])) as right:
            np.testing.assert_array_equal(left["y"], right["y"])


def test_files_that_cannot_be_read_have_a_reason(files: list[Path], tmp_path: Path) -> None:
    paths = [files[0], tmp_path / "gone.npy"]
    rows = cluster._read({"number": np.arange(2), "path": np.array([os.fsencode(path) for path in paths], object)})
    assert list(rows["reason"]) == ["", f"{paths[1]} cannot be read: No such file or directory"]
    assert list(rows["content"]) == [files[0].read_bytes(), b""]


def test_a_batch_has_an_answer_or_a_reason_for_every_file(files: list[Path], tmp_path: Path) -> None:
    runner = cluster._Runner.__new__(cluster._Runner)
    runner._worker = Worker(models.mean(tmp_path / "mean.onnx"), 4, Picture())
    paths = [*files, tmp_path / "gone.npy"]
    rows = cluster._read(
        {"number": np.arange(len(paths)), "path": np.array([os.fsencode(path) for path in paths], object)}
    )
    done = runner(rows)
    assert list(done["number"]) == list(range(len(paths)))
    assert [bool(answer) != bool(reason) for answer, reason in zip(done["answer"], done["reason"])] == [True] * 9
    assert done["reason"][-1] == f"{paths[-1]} cannot be read: No such file or directory"
    with np.load(io.BytesIO(done["answer"][files.index(tmp_path / "in/many.npy")])) as arrays:
        want = np.load(tmp_path / "in/many.npy").mean((2, 3))
        np.testing.assert_allclose(arrays["y"], want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("data", [False, True])
def test_a_model_travels_with_its_weights(tmp_path: Path, data: bool) -> None:
    path = models.external(tmp_path / "net.onnx", "net.onnx.data") if data else models.mean(tmp_path / "net.onnx")
    if data:
        (tmp_path / "net.onnx.data").write_bytes(np.arange(3, dtype=np.float32).tobytes())
    parcel = nodes.packed(path)
    assert set(parcel.contents) == {"net.onnx", "net.onnx.data"} if data else {"net.onnx"}
    there = nodes.unpacked(parcel, tmp_path / "there")
    assert there == tmp_path / "there/net.onnx"
    assert Worker(there, 1, Picture()).names == ["y"]
    assert nodes.unpacked(nodes.packed(path, most=10), tmp_path / "elsewhere") == path
    assert not (tmp_path / "elsewhere").exists()


def test_without_ray_it_says_what_to_install(files: list[Path], tmp_path: Path) -> None:
    words = [str(models.mean(tmp_path / "mean.onnx")), str(files[0]), "-o", str(tmp_path / "out"), "--ray"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("importlib.util.find_spec", lambda name: None)
        done = CliRunner().invoke(command, words)
    assert isinstance(done.exception, MissingExtraError)
    assert "running on a cluster needs the package 'ray'" in str(done.exception)
    assert not (tmp_path / "out").exists()


def test_files_that_are_answered_need_no_cluster(files: list[Path], tmp_path: Path) -> None:
    words = [str(models.mean(tmp_path / "mean.onnx")), *map(str, files[2:4]), "-o", str(tmp_path / "out")]
    assert CliRunner().invoke(command, words).exit_code == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("importlib.util.find_spec", lambda name: ModuleSpec(name, None))
        done = CliRunner().invoke(command, [*words, "--ray", "--json"])
    assert done.exit_code == 0, done.output
    assert '"found": 2' in done.output


@pytest.mark.parametrize(("option", "value"), [("--batch", "0"), ("--threads", "0")])
def test_bad_options_are_refused_before_a_cluster_is_joined(
    files: list[Path], tmp_path: Path, option: str, value: str
) -> None:
    words = [
        str(models.mean(tmp_path / "mean.onnx")),
        str(files[0]),
        "-o",
        str(tmp_path / "out"),
        "--ray",
        option,
        value,
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("importlib.util.find_spec", lambda name: ModuleSpec(name, None))
        done = CliRunner().invoke(command, words)
    assert isinstance(done.exception, InputError)
    assert "at least one" in str(done.exception)
