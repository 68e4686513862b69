"""Every method has a checkpoint that is what it says it is; a file that is not is refused."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from poolexport import catalog
from poolexport.errors import InputError
from poolexport_models import load, recipe
from poolexport_models.data import digits
from poolexport_models.recipes import CHECKPOINTS, METADATA_KEY, RESIDUAL, SUMS, checksums, metadata, recipes
from poolexport_models.scenes import BACKGROUND, boxes, overlap, scenes
from poolexport_models.tasks import SceneTask, resized
from poolexport_models.train import README, predictions, table, with_table

METHODS = sorted(recipes())
DETECTORS = [name for name, plan in recipes().items() if plan.hole == "regions"]
#: Methods for images that no network is built with: they take what another layer answers, or a text beside the image.
WITHOUT = {"max_unpool", "mcb", "mlb"}


def test_every_method_for_images_has_a_checkpoint() -> None:
    images = {name for name, method in catalog.methods().items() if 2 in method.ranks}
    assert {file.name for file in CHECKPOINTS.glob("*.safetensors")} == set(checksums())
    assert set(checksums()) == {f"{name}.safetensors" for name in images - WITHOUT}


def test_residual_networks_are_among_them() -> None:
    assert sum(recipe(name).network.__name__ == "ResidualCNN" for name in METHODS) == len(RESIDUAL) >= 2


@pytest.mark.parametrize("name", METHODS)
def test_checkpoints_are_small_and_match_their_checksums(name: str) -> None:
    file = CHECKPOINTS / f"{name}.safetensors"
    assert file.stat().st_size < 120_000
    assert hashlib.sha256(file.read_bytes()).hexdigest() == checksums()[file.name]


@pytest.mark.parametrize("name", METHODS)
def test_networks_hold_the_layer_of_their_method(name: str) -> None:
    model, plan = load(name), recipe(name)
    filled = {"pool": ("pool1", "pool2"), "regions": ("pool",)}.get(plan.hole, ("head",))
    assert {getattr(catalog.method_of(model.get_submodule(place)), "name", None) for place in filled} == {name}
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("name", METHODS)
def test_accuracy_is_as_recorded(name: str) -> None:
    inputs, labels = recipe(name).task.test()
    correct = int((predictions(load(name), *inputs) == labels).sum())
    about = metadata(name)
    # Another processor may round a single answer across the border between two classes.
    assert abs(correct - about["correct"]) <= 1
    assert about["test_accuracy"] == pytest.approx(about["correct"] / about["images"], abs=1e-6)
    assert about["images"] == len(labels)
    assert about["test_accuracy"] >= 0.95


@pytest.mark.parametrize("name", METHODS)
def test_the_recorded_recipe_is_the_recipe(name: str) -> None:
    about, plan = metadata(name), recipe(name)
    recorded = {key: about[key] for key in ("hole", "seed", "epochs", "settled", "batch", "rate")}
    assert recorded == {key: getattr(plan, key) for key in recorded}
    assert about["network"] == plan.network.__name__
    assert about["options"] == json.loads(json.dumps(dict(plan.options)))


def test_the_network_of_a_pyramid_reads_images_of_sizes_that_no_training_saw() -> None:
    data, model = digits(), load("spp")
    for size in ((16, 16), (18, 26), (24, 24), (31, 22), (19, 17)):
        right = (predictions(model, resized(data.test_images, size)) == data.test_labels).float().mean()
        assert right >= 0.9, f"{right:.1%} at {size}"


def test_detectors_find_where_the_digits_are() -> None:
    test = scenes()[1]
    (images, rois), labels = SceneTask().test()
    shown = labels != BACKGROUND
    truth = boxes(rois[:, 1:], test.shifts.flatten(0, 1))[shown]
    proposed = np.diag(overlap(rois[shown, 1:].numpy(), truth.numpy())).mean()
    for name in DETECTORS:
        with torch.no_grad():
            _, shifts = load(name)(images, rois)
        found = np.diag(overlap(boxes(rois[:, 1:], shifts)[shown].numpy(), truth.numpy())).mean()
        assert found > proposed + 0.05, f"{name}: overlap {found:.2f}, that of the proposals is {proposed:.2f}"


def test_checksums_have_the_form_that_sha256sum_reads() -> None:
    lines = (CHECKPOINTS / SUMS).read_text().splitlines()
    assert lines == [f"{digest}  {name}" for name, digest in sorted(checksums().items())]
    assert all(len(digest) == 64 for digest in checksums().values())


def test_the_table_in_the_readme_is_the_one_the_files_give() -> None:
    text = README.read_text()
    assert with_table(text, table()) == text


def test_a_readme_without_markers_is_refused() -> None:
    with pytest.raises(ValueError, match="must hold the lines"):
        with_table("# Networks\n", table())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of one checkpoint with its checksum."""
    shutil.copy(CHECKPOINTS / "max.safetensors", tmp_path)
    (tmp_path / SUMS).write_text(f"{checksums()['max.safetensors']}  max.safetensors\n")
    return tmp_path


def test_an_untouched_copy_loads(folder: Path) -> None:
    assert isinstance(load("max", folder), nn.Module)


def test_a_single_flipped_bit_is_refused(folder: Path) -> None:
    file = folder / "max.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"max\.safetensors is not the file that was trained.*--only max"):
        load("max", folder)


def test_the_checkpoint_of_another_network_is_refused(folder: Path) -> None:
    file = folder / "max.safetensors"
    shutil.copy(CHECKPOINTS / "softpool.safetensors", file)
    (folder / SUMS).write_text(f"{hashlib.sha256(file.read_bytes()).hexdigest()}  max.safetensors\n")
    with pytest.raises(InputError, match="does not fit the recipe of 'max'"):
        load("max", folder)


def test_a_tensor_too_many_is_refused(folder: Path) -> None:
    file = folder / "max.safetensors"
    state = load_file(file)
    save_file({**state, "extra": state["classifier.bias"].clone()}, file, {METADATA_KEY: "{}"})
    (folder / SUMS).write_text(f"{hashlib.sha256(file.read_bytes()).hexdigest()}  max.safetensors\n")
    with pytest.raises(InputError, match="extra"):
        load("max", folder)


@pytest.mark.parametrize("missing", ["max.safetensors", SUMS])
def test_a_missing_file_is_named(folder: Path, missing: str) -> None:
    (folder / missing).unlink()
    with pytest.raises(InputError, match=missing):
        load("max", folder)


def test_a_checkpoint_without_a_checksum_is_refused(folder: Path) -> None:
    (folder / SUMS).write_text("")
    with pytest.raises(InputError, match="with a checksum"):
        load("max", folder)


@pytest.mark.parametrize("line", [b"garbage", b"one two three", b"\xff\xfe\x00", b"0" * 63 + b"  max.safetensors"])
def test_garbage_among_the_checksums_is_named(folder: Path, line: bytes) -> None:
    file = folder / SUMS
    file.write_bytes(file.read_bytes() + line + b"\n")
    with pytest.raises(InputError, match=r"line 2 of SHA256SUMS is no SHA-256 and file name.*poolexport_models\.train"):
        load("max", folder)


def test_the_module_of_recipes_is_not_hidden_by_a_function() -> None:
    import poolexport_models.recipes as module

    assert isinstance(module, ModuleType)


def test_an_unknown_method_is_answered_with_those_there_are() -> None:
    with pytest.raises(InputError, match=r"no network demonstrates 'nopool'.*softpool"):
        load("nopool")
