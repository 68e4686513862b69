"""The smallest and simplest input that still fails, and a script that shows it without us."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

import poolexport
from poolexport.errors import InputError, OutputError
from poolexport.proof.witness import minimise
from proof.faults import plant

AXES = {0: "N", 2: "H", 3: "W"}


class Peak(nn.Module):
    """Wrong in the file for one kind of cell only."""

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.limit = limit

    def forward(self, x):
        return torch.where(x > self.limit, x, x * 0).amax((2, 3))


@pytest.fixture(scope="module")
def peak(tmp_path_factory):
    """A file that calls cells large from 2 on, which are so from 1 on in the model."""
    path = tmp_path_factory.mktemp("peak") / "net.onnx"
    poolexport.export(Peak(2.0).eval(), torch.randn(2, 3, 9, 11), path, dynamic_shapes=AXES, verify=False)
    return path


def test_shapes_and_values_become_as_simple_as_can_be(peak):
    x = torch.randn(4, 3, 20, 30, generator=torch.Generator().manual_seed(0)).clamp(max=1.9)
    witness = minimise(peak, Peak(1.0).eval(), [x])
    [found] = witness.inputs
    assert found.shape == (1, 3, 1, 1)
    assert found.count_nonzero() == 1
    assert 1 < found.max() <= 2
    assert float(found.max()) * 8 % 1 == 0
    assert witness.compared.wrong
    assert "error" in witness.reason
    assert witness.tries <= 200


def test_a_wrong_bias_fails_on_one_zero(exported):
    model, inputs, content = exported("compact")
    witness = minimise(plant(content, "bias", -1).content, model, inputs)
    [found] = witness.inputs
    assert (found.shape[:2], found.count_nonzero().item()) == ((1, 1), 0)
    assert found.numel() <= 16


def test_fixed_axes_and_whole_numbers_are_kept(exported):
    model, inputs, content = exported("branches")
    witness = minimise(plant(content, "bias", -1).content, model, inputs)
    assert [x.shape for x in witness.inputs] == [x.shape for x in inputs]
    assert [x.count_nonzero().item() for x in witness.inputs] == [0, 0]


def test_the_number_of_tries_is_bounded(peak):
    x = torch.randn(4, 3, 20, 30, generator=torch.Generator().manual_seed(0)).clamp(max=1.9)
    witness = minimise(peak, Peak(1.0).eval(), [x], tries=12)
    assert witness.tries == 12
    assert witness.compared.wrong


def test_the_script_fails_while_the_file_is_wrong_and_not_when_it_is_mended(peak, tmp_path):
    x = torch.randn(2, 3, 9, 11, generator=torch.Generator().manual_seed(0)).clamp(max=1.9)
    model = Peak(1.0).eval()
    data, script = minimise(peak, model, [x]).save(tmp_path / "witness.npz", peak)
    assert sorted(tmp_path.iterdir()) == [data, script]
    code = script.read_text()
    assert "poolexport" not in code.replace(str(peak.parent), "")
    assert "torch" not in code
    assert len(code.splitlines()) <= 16
    run = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (1, "")
    assert "off by" in run.stdout
    mended = tmp_path / "mended.onnx"
    poolexport.export(model, torch.randn(2, 3, 9, 11), mended, dynamic_shapes=AXES, verify=False)
    run = subprocess.run([sys.executable, script, mended], capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, "")
    kept = np.load(data)
    assert sorted(kept) == ["answer:output", "bound:output", "input:x", "truth:output"]
    assert kept["answer:output"].shape == kept["truth:output"].shape


def test_nothing_is_overwritten_unasked(peak, tmp_path):
    x = torch.full((1, 3, 2, 2), 1.5)
    witness = minimise(peak, Peak(1.0).eval(), [x])
    target = tmp_path / "witness.npz"
    target.with_suffix(".py").write_text("mine")
    with pytest.raises(OutputError, match=r"witness\.py exists; choose another name"):
        witness.save(target, peak)
    assert [path.name for path in tmp_path.iterdir()] == ["witness.py"]
    witness.save(target, peak, force=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["witness.npz", "witness.py"]
    with pytest.raises(OutputError, match=r"a witness is a \.npz file"):
        witness.save(tmp_path / "witness.txt", peak)
    with pytest.raises(OutputError, match="does not exist; create it first"):
        witness.save(tmp_path / "nowhere" / "witness.npz", peak)


def test_a_right_file_has_no_witness(peak):
    with pytest.raises(InputError, match="the file answers these inputs rightly"):
        minimise(peak, Peak(2.0).eval(), [torch.randn(1, 3, 4, 4)])
