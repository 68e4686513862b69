import numpy as np
import pytest
import torch
from onnx import helper

import poolexport
from poolexport.errors import InputError
from poolexport.handoff import deployment

AXIS_0 = helper.make_node("Constant", [], ["axis"], value_ints=[0])
ROW = {"x": np.arange(12, dtype=np.float32).reshape(2, 6)}


def test_a_bundle_tells_its_name_files_and_batch_axis(images):
    model = deployment(images)
    assert (model.name, model.batch_axis, model.unbatched) == ("soft-net", "N", "")
    assert model.file == images / "model.onnx"
    assert model.manifest.verdict == "PASS"
    assert model.sample["input"].shape[1:] == (3, 10, 8)


def test_regions_are_no_batch(regions):
    model = deployment(regions)
    assert model.batch_axis == ""
    assert "no dynamic first axis in common" in model.unbatched


def test_rows_that_depend_on_each_other_are_no_batch(bundled):
    nodes = [AXIS_0, helper.make_node("ReduceMean", ["x", "axis"], ["m"]), helper.make_node("Sub", ["x", "m"], ["y"])]
    model = deployment(bundled("centred", nodes, {"x": ["N", 6]}, {"y": ["N", 6]}, ROW))
    assert model.batch_axis == ""
    assert model.unbatched == "a row of output 'y' depends on the other rows of its batch"


def test_rows_that_are_put_together_are_no_batch(bundled):
    nodes = [AXIS_0, helper.make_node("ReduceMax", ["x", "axis"], ["m"]), helper.make_node("NonZero", ["m"], ["i"])]
    nodes += [helper.make_node("Transpose", ["i"], ["t"]), helper.make_node("Cast", ["t"], ["y"], to=1)]
    model = deployment(bundled("found", nodes, {"x": ["N", 6]}, {"y": ["N", 2]}, ROW))
    assert "for two rows" in model.unbatched


def test_a_model_that_takes_one_row_only_is_no_batch(bundled):
    nodes = [
        helper.make_node("Constant", [], ["shape"], value_ints=[1, 6]),
        helper.make_node("Reshape", ["x", "shape"], ["row"]),
        helper.make_node("Add", ["x", "row"], ["y"]),
    ]
    model = deployment(bundled("single", nodes, {"x": ["N", 6]}, {"y": ["N", 6]}, ROW))
    assert "does not take two rows at once" in model.unbatched


def test_independent_rows_are_a_batch(bundled):
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    assert deployment(bundled("relu", nodes, {"x": ["N", 6]}, {"y": ["N", 6]}, ROW)).batch_axis == "N"


def test_a_file_without_a_sample_is_not_batched(images):
    model = deployment(images / "model.onnx", "net")
    assert model.batch_axis == ""
    assert "hand on a bundle" in model.unbatched


def test_what_was_not_verified_is_not_handed_on(tmp_path):
    poolexport.export(torch.nn.ReLU().eval(), torch.randn(1, 3), tmp_path / "net", verify=False)
    with pytest.raises(InputError, match="says UNVERIFIED"):
        deployment(tmp_path / "net")


@pytest.mark.parametrize("name", ["", "-net", "Net", "a/b", "../net", "a" * 64, "n\n", "netz-"])
def test_bad_names_are_refused(images, name):
    with pytest.raises(InputError, match="no name"):
        deployment(images, name)


def test_a_path_without_letters_needs_a_name(images, tmp_path):
    odd = tmp_path / "___"
    odd.symlink_to(images)
    with pytest.raises(InputError, match="give one"):
        deployment(odd)


def test_missing_weights_and_damaged_samples_are_refused(images, tmp_path):
    import shutil

    shutil.copytree(images, tmp_path / "net")
    (tmp_path / "net" / "sample.npz").write_bytes(b"no archive")
    with pytest.raises(InputError, match=r"sample\.npz cannot be read"):
        deployment(tmp_path / "net")
