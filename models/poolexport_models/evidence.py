"""The evidence for a method: two files, run on all test digits, each compared with the network it was made from."""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import poolexport
from poolexport.errors import OutputError, PoolExportError
from poolexport.tolerance import judge
from poolexport_models.tasks import Task, answers_of

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
        differing: test digits, or regions, for which the file predicts another class than torch.
        largest: largest distance between two answers, over all of them.
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
        hole: where the method's layer is: "pool", "head", "streams" or "regions".
        images: test digits, or regions of test scenes.
        things: "digits" or "regions".
        accuracy: share of right predictions of the model in torch.
        forms: the two files.
        seconds: for everything, pictures included.
        reason: why the layer by itself failed; empty where it did not.
    """

    method: str
    network: str
    hole: str
    images: int
    things: str
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


def form_of(name: str, task: Task, model: nn.Module, folder: Path) -> Form:
    """Export one form, run all test inputs through the file, and judge its answers.

    Raises:
        OutputError: the file cannot be written, which says nothing about the method.
    """
    inputs, labels = task.test()
    try:
        bundle = poolexport.export(
            model, task.few(), folder / name, dynamic_shapes=list(task.axes), portable=FORMS[name], force=True
        )
        answers = ask_all(model, bundle.path, *inputs)
    except OutputError:
        raise
    except PoolExportError as error:
        return Form(name, "FAIL", reason=str(error))
    scores = answers[0]
    differing = int((scores.runtime.argmax(1) != scores.torch.argmax(1)).sum())
    told = [f"{differing} of {len(scores.torch)} predictions differ from torch"] if differing else []
    told += [f"the answers to the test {task.things}: {answer.reason}" for answer in answers if answer.reason]
    return Form(
        name,
        bundle.manifest.verdict,
        checks=bundle.manifest.checks,
        accuracy=accuracy_of(scores.runtime, labels),
        differing=differing,
        largest=max(float(np.abs(answer.runtime - answer.torch).max()) for answer in answers),
        reason="; ".join(told),
    )


def accuracy_of(scores: np.ndarray, labels: Tensor) -> float:
    """Share of the labels that are the likeliest class in their scores."""
    return float((scores.argmax(1) == labels.numpy()).mean())


@dataclass(frozen=True)
class Answers:
    """What some inputs become, in one output.

    Args:
        torch: by the model.
        runtime: by its file, in onnxruntime.
        truth: by the model in float64.
    """

    torch: np.ndarray
    runtime: np.ndarray
    truth: np.ndarray

    @property
    def reason(self) -> str:
        """Why the answer of the file is wrong; empty where it is right."""
        return judge(self.runtime, self.torch, self.truth).reason


def ask(model: nn.Module, path: Path, x: Tensor, times: int = 1) -> Answers:
    """Ask a model and the file on disk; where more than once, each about its own last answer.

    Raises:
        PoolExportError: the answers have different shapes.
    """
    return _alike(
        in_torch(model, x, times),
        in_runtime(path, x, times),
        in_torch(copy.deepcopy(model).double(), x.double(), times),
    )


def ask_all(model: nn.Module, path: Path, *inputs: Tensor) -> list[Answers]:
    """Ask a model and the file on disk about inputs; what they say in every output.

    Raises:
        PoolExportError: the answers have different shapes.
    """
    session = poolexport.session(path)
    feed = {given.name: x.numpy() for given, x in zip(session.get_inputs(), inputs, strict=True)}
    with torch.no_grad():
        ours = answers_of(model, inputs)
        truth = answers_of(copy.deepcopy(model).double(), tuple(x.double() for x in inputs))
    return [_alike(a.numpy(), b, c.numpy()) for a, b, c in zip(ours, session.run(None, feed), truth, strict=True)]


def _alike(ours: np.ndarray, theirs: np.ndarray, truth: np.ndarray) -> Answers:
    answers = Answers(ours, theirs, truth)
    if theirs.shape != ours.shape:
        raise PoolExportError(answers.reason)
    return answers


def in_torch(model: nn.Module, x: Tensor, times: int = 1) -> np.ndarray:
    """What a model makes of ``x`` when it is applied several times."""
    with torch.no_grad():
        for _ in range(times):
            x = model(x)
    return x.numpy()


def in_runtime(path: Path, x: Tensor, times: int = 1) -> np.ndarray:
    """What a file makes of ``x`` when it is applied several times."""
    session = poolexport.session(path)
    name = session.get_inputs()[0].name
    answer: np.ndarray = x.numpy()
    for _ in range(times):
        answer = session.run(None, {name: answer})[0]
    return answer
