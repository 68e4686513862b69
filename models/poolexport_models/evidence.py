"""The evidence for a method: two files, run on all test digits, each compared with the network it was made from."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

import poolexport
from poolexport.errors import PoolExportError
from poolexport_models.data import digits

AXES = {0: "N", 2: "H", 3: "W"}
#: The two ways to write a file, and whether it holds standard operators only.
FORMS = {"function": False, "inlined": True}


@dataclass(frozen=True)
class Form:
    """One exported file, and what onnxruntime made of the test digits with it.

    Args:
        name: "function" or "inlined".
        verdict: "PASS" or "FAIL", of the verification that is part of every export.
        checks: comparisons it made.
        accuracy: share of right predictions of the file.
        differing: test digits for which the file predicts another class than torch.
        largest: largest distance between two answers, over all digits and classes.
        reason: why it failed; empty where it passed.
    """

    name: str
    verdict: str
    checks: int = 0
    accuracy: float | None = None
    differing: int | None = None
    largest: float | None = None
    reason: str = ""

    @property
    def passed(self) -> bool:
        return self.verdict == "PASS" and self.differing == 0 and not self.reason


@dataclass(frozen=True)
class Row:
    """The evidence for one method.

    Args:
        method: name in the catalogue.
        network: class name of the trained network.
        hole: where the method's layer is: "pool" or "head".
        images: test digits.
        accuracy: share of right predictions of the model in torch.
        forms: the two files.
        seconds: for everything, pictures included.
        reason: why it failed outside of a form; empty where it did not.
    """

    method: str
    network: str
    hole: str
    images: int
    accuracy: float
    forms: tuple[Form, ...]
    seconds: float
    reason: str = ""

    @property
    def passed(self) -> bool:
        return not self.reason and all(form.passed for form in self.forms)

    @property
    def failures(self) -> list[str]:
        """A sentence for everything that did not pass."""
        told = [f"{self.method}, {form.name} form: {form.reason}" for form in self.forms if not form.passed]
        return ([f"{self.method}: {self.reason}"] if self.reason else []) + told

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"passed": self.passed, **asdict(self)}


def form_of(name: str, model: nn.Module, answers: Tensor, folder: Path) -> Form:
    """Export one form, run all test digits through the file, and compare with torch's answers."""
    data = digits()
    try:
        bundle = poolexport.export(
            model, data.test_images[:2], folder / name, dynamic_shapes=AXES, portable=FORMS[name], force=True
        )
        found = run(bundle.path, data.test_images)
    except PoolExportError as error:
        return Form(name, "FAIL", reason=str(error))
    expected = answers.numpy()
    differing = int((found.argmax(1) != expected.argmax(1)).sum())
    return Form(
        name,
        bundle.manifest.verdict,
        checks=bundle.manifest.checks,
        accuracy=accuracy_of(found),
        differing=differing,
        largest=float(np.abs(found - expected).max()),
        reason=f"{differing} of {len(expected)} predictions differ from torch" if differing else "",
    )


def accuracy_of(answers: np.ndarray) -> float:
    return float((answers.argmax(1) == digits().test_labels.numpy()).mean())


def run(path: Path, x: Tensor) -> np.ndarray:
    """What onnxruntime answers to one input."""
    session = poolexport.session(path)
    result: np.ndarray = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    return result
