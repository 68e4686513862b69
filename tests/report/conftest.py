"""A net, a file of it that is right and one that is wrong, and the reports of both; made once."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from cli.conftest import Run, invoke, working_in

NET = """
import torch
from torch import nn
from poolexport.nn import SoftPool2d


def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), SoftPool2d(2))


def other():
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten())
"""


@dataclass(frozen=True)
class Place:
    """A folder with net.py, the bundle ``good``, the file ``bent.onnx``, and a folder of reports for each."""

    folder: Path

    def report(self, name: str) -> dict[str, Any]:
        return json.loads((self.folder / f"{name}-reports" / "report.json").read_text())

    def page(self, name: str) -> Path:
        return self.folder / f"{name}-reports" / "report.html"


def bend(source: Path, target: Path, share: float) -> None:
    """Copy a file with the weights of one channel of its convolution off by a share."""
    model = onnx.load(source)
    for weight in model.graph.initializer:
        if len(weight.dims) == 4:
            values = numpy_helper.to_array(weight).copy()
            values[1] *= np.float32(1 + share)
            weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    onnx.save(model, target)


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("reports")
    (folder / "net.py").write_text(NET)
    with working_in(folder):
        made = invoke("export", "net.py:build", "--input", "1x2x12x11", "--dynamic", "N,H,W", "-o", "good")
        assert made.exit_code == 0, made.output
        bend(folder / "good" / "model.onnx", folder / "bent.onnx", 2e-4)
        right = invoke("verify", "good", "net.py:build", "--report", "good-reports")
        assert right.exit_code == 0, right.output
        wrong = invoke(
            "verify", "bent.onnx", "net.py:build", "--report", "bent-reports", "--against", "good-reports/report.json"
        )
        assert wrong.exit_code == 1, wrong.output
    return Place(folder)


@pytest.fixture
def run(place: Place) -> Iterator[Run]:
    """The command line, in that folder."""
    with working_in(place.folder):
        yield invoke


@pytest.fixture
def good(place: Place) -> dict[str, Any]:
    """The report of the right file, to be changed at will."""
    return copy.deepcopy(place.report("good"))
