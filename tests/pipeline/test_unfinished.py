"""Verifications that stop when the time is over, and that go on where an earlier one was cut off."""

from __future__ import annotations

import copy
import importlib.util
import itertools
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import poolexport
from poolexport.errors import InputError, OutputError, ParityError
from poolexport.pipeline import verify as stage
from poolexport.pipeline.verify import Given, Verdict
from poolexport.runtime import VARIANTS, Variant

X = torch.randn(1, 3, 12, 11, generator=torch.Generator().manual_seed(0))
WAYS = (Variant("none", 1), Variant("all", 1, "inlined"))
#: Checks of this file in these ways.
ALL = 2 + 35 + 2 * 4


@pytest.fixture(scope="module")
def model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), poolexport.nn.SoftPool2d(2)).eval()


@pytest.fixture(scope="module")
def file(model: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("unfinished") / "net.onnx"
    return poolexport.export(model, X, path, dynamic_shapes={0: "N", 2: "H", 3: "W"}, verify=False).path


@pytest.fixture(scope="module")
def whole(model: nn.Module, file: Path) -> Verdict:
    """What an uninterrupted verification finds."""
    return poolexport.verify(file, model, X, variants=WAYS, extremes=True)


class Counting:
    """Counts the checks that are made; after so many, somebody interrupts."""

    def __init__(self, most: int = 10**9) -> None:
        self.made, self._most = 0, most

    def __call__(self, *_: object) -> None:
        if self.made == self._most:
            raise KeyboardInterrupt
        self.made += 1


def go(file: Path, model: nn.Module | Path, resume: Path | None = None, **options: Any) -> Verdict:
    return poolexport.verify(file, model, X, **{"variants": WAYS, "extremes": True, "resume": resume, **options})


def cut(file: Path, model: nn.Module, resume: Path, after: int = 20) -> None:
    with pytest.raises(KeyboardInterrupt):
        go(file, model, resume, watch=Counting(after))
    assert len(resume.read_text().splitlines()) == 1 + after


def test_without_any_time_the_example_and_normal_values_are_tried(model: nn.Module, file: Path, whole: Verdict):
    verdict = go(file, model, budget=0)
    assert [check.values for check in verdict.checks] == ["example", "normal"]
    assert {check.shapes for check in verdict.checks} == {((1, 3, 12, 11),)}
    assert (verdict.word, verdict.passed, verdict.grade) == ("UNVERIFIED", False, "WITHIN ROUNDING")
    planned = {(check.values, check.shapes, check.runtime) for check in whole.checks}
    made = {(check.values, check.shapes, check.runtime) for check in verdict.checks}
    assert made | {(left.values, left.shapes, left.runtime) for left in verdict.left_out} == planned
    assert len(verdict.checks) + len(verdict.left_out) == len(whole.checks)


def test_a_file_that_is_wrong_fails_without_any_time_too(model: nn.Module, file: Path):
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[0].weight[0, 0, 0, 0] += 0.01
    with pytest.raises(ParityError, match="2 of 2 checks failed"):
        go(file, other, budget=0)


def test_checks_are_made_until_the_time_is_over(model: nn.Module, file: Path, whole: Verdict, monkeypatch):
    # the clock moves by a second whenever somebody looks at it
    clock = itertools.count()
    monkeypatch.setattr(stage, "time", SimpleNamespace(monotonic=lambda: float(next(clock))))
    verdict = go(file, model, budget=10)
    assert len(verdict.checks) == 2 + 9
    assert verdict.checks == whole.checks[:11]
    # every dynamic axis has been moved by then
    moved = {axis for check in verdict.checks for axis, n in enumerate(check.shapes[0]) if n != X.shape[axis]}
    assert moved == {0, 2, 3}


def test_enough_time_changes_nothing(model: nn.Module, file: Path, whole: Verdict):
    assert go(file, model, budget=1e9) == whole
    assert whole.left_out == ()


@pytest.mark.parametrize("budget", [-1.0, float("nan")])
def test_a_budget_that_is_none_is_refused(model: nn.Module, file: Path, budget: float):
    with pytest.raises(InputError, match="budget must be a number of seconds of at least 0"):
        go(file, model, budget=budget)


@pytest.mark.parametrize("after", [1, 40])
def test_a_verification_that_was_cut_off_goes_on(
    model: nn.Module, file: Path, whole: Verdict, tmp_path: Path, after: int
):
    kept = tmp_path / "checks"
    cut(file, model, kept, after)
    assert go(file, model, kept) == whole
    lines = kept.read_text().splitlines()
    assert len(lines) == 1 + len(whole.checks)
    # and once more, with nothing left to do
    assert go(file, model, kept) == whole
    assert kept.read_text().splitlines() == lines


def test_only_what_is_missing_is_made(model: nn.Module, file: Path, tmp_path: Path, whole: Verdict):
    kept = tmp_path / "checks"
    cut(file, model, kept)
    seen = Counting()
    assert go(file, model, kept, watch=seen) == whole
    # and what came closest to its bound, so that whoever watches sees it
    assert len(whole.checks) - 20 <= seen.made < len(whole.checks)


def test_a_verification_that_ran_out_of_time_goes_on(model: nn.Module, file: Path, whole: Verdict, tmp_path):
    kept = tmp_path / "checks"
    assert len(go(file, model, kept, budget=0).checks) == 2
    assert len(go(file, model, kept, budget=0, watch=Counting()).checks) == 2
    assert go(file, model, kept) == whole


def test_a_check_that_is_taken_away_is_made_again(model: nn.Module, file: Path, whole: Verdict, tmp_path: Path):
    kept = tmp_path / "checks"
    go(file, model, kept)
    lines = kept.read_text().splitlines(keepends=True)
    kept.write_text("".join(lines[:7] + lines[8:]))
    assert go(file, model, kept) == whole
    assert sorted(kept.read_text().splitlines(keepends=True)) == sorted(lines)


def test_half_a_line_is_none(model: nn.Module, file: Path, whole: Verdict, tmp_path: Path):
    kept = tmp_path / "checks"
    cut(file, model, kept)
    kept.write_bytes(kept.read_bytes()[:-30])
    assert go(file, model, kept) == whole
    assert all(json.loads(line) for line in kept.read_text().splitlines())


def test_a_failure_is_the_same_after_an_interruption(model: nn.Module, file: Path, tmp_path: Path):
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[0].weight[0, 0, 0, 0] += 0.01
    with pytest.raises(ParityError) as at_once:
        go(file, other)
    cut(file, other, tmp_path / "checks", 5)
    seen = Counting()
    with pytest.raises(ParityError) as resumed:
        go(file, other, tmp_path / "checks", watch=seen)
    assert (str(resumed.value), resumed.value.verdict) == (str(at_once.value), at_once.value.verdict)
    # failures are shown again, for whoever looks for the reason
    assert seen.made == len(at_once.value.verdict.checks)


def test_checks_of_something_else_are_refused(model: nn.Module, file: Path, tmp_path: Path):
    kept = tmp_path / "checks"
    go(file, model, kept, budget=0)
    content = kept.read_bytes()
    other = copy.deepcopy(model)
    other[1].running_mean += 1e-6
    data = [Given("a.npy", lambda: [X])]
    copied = tmp_path / "copy.onnx"
    copied.write_bytes(file.read_bytes())
    for found, options in (
        ("model", {"model": other}),
        ("model", {"model": copied}),
        ("model", {"model": nn.Sequential(*model[:2], nn.AvgPool2d(2)).eval()}),
        ("settings", {"seed": 1}),
        ("settings", {"rtol": 1e-3}),
        ("settings", {"variants": VARIANTS}),
        ("settings", {"strict": True}),
        ("settings", {"data": data}),
    ):
        with pytest.raises(InputError, match=f"holds checks with another {found}; choose another file, or delete it"):
            go(file, options.pop("model", model), kept, **options)
    copied.write_bytes(file.read_bytes() + b"\x7a\x03\x0a\x01x")
    with pytest.raises(InputError, match="with another file"):
        go(copied, model, kept)
    first, *lines = content.decode().splitlines(keepends=True)
    kept.write_text("".join([first.replace("onnxruntime 1.", "onnxruntime 0."), *lines]))
    with pytest.raises(InputError, match="with another version of what computes"):
        go(file, model, kept)
    kept.write_bytes(content)
    assert go(file, model, kept, budget=0).word == "UNVERIFIED"


def test_checks_of_a_forward_that_was_edited_since_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def built(name: str, answer: str) -> nn.Module:
        path = tmp_path / f"{name}.py"
        code = f"class Net(nn.Module):\n    def forward(self, x):\n        return {answer}\n"
        path.write_text(f"from torch import nn\n\n\n{code}")
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        return module.Net().eval()

    file, kept = tmp_path / "net.onnx", tmp_path / "checks"
    model, edited = built("resumed_before", "x.tanh()"), built("resumed_after", "x.sigmoid()")
    poolexport.export(model, X, file, verify=False)
    go(file, model, kept, variants=())
    with pytest.raises(InputError, match="holds checks with another model"):
        go(file, edited, kept, variants=())


def test_an_example_that_is_no_tensor_is_told(model: nn.Module, file: Path):
    with pytest.raises(InputError, match="the example of input 'input' is ndarray; give a"):
        poolexport.verify(file, model, (X.numpy(),))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda line: line.replace('"normal"', '"ties"'), "damaged in line 3"),
        (lambda line: line.replace('"step": 1', '"step": 4711'), "damaged in line 3"),
        (lambda line: line.replace('"error"', '"eror"'), "damaged in line 3"),
        (lambda line: '{"step": -1, "skipped": {"reason": "x"}}\n', "damaged in line 3"),
        (lambda line: '{"step": "1", "skipped": {"reason": "x"}}\n', "damaged in line 3"),
        (lambda line: '{"step": 4711, "untried": {"reason": "x"}}\n', "damaged in line 3"),
        (lambda line: "[]\n", "damaged in line 3"),
        (lambda line: "\x00\n", "damaged in line 3"),
    ],
)
def test_a_damaged_file_is_refused(model: nn.Module, file: Path, tmp_path: Path, change: Any, told: str):
    kept = tmp_path / "checks"
    go(file, model, kept, budget=0)
    lines = kept.read_text().splitlines(keepends=True)
    kept.write_text("".join([*lines[:2], change(lines[2]), *lines[3:]]))
    with pytest.raises(InputError, match=told):
        go(file, model, kept, budget=0)


@pytest.mark.parametrize("content", ["", "a letter\n", "{}\n", "[]\n", '{"format": "poolexport-report"}\n'])
def test_a_file_of_somebody_is_not_written_to(model: nn.Module, file: Path, tmp_path: Path, content: str):
    theirs = tmp_path / "theirs"
    theirs.write_text(content)
    with pytest.raises(InputError, match="holds no checks of poolexport"):
        go(file, model, theirs, budget=0)
    assert theirs.read_text() == content


def test_a_folder_that_is_not_there_is_told(model: nn.Module, file: Path, tmp_path: Path):
    with pytest.raises(OutputError, match="does not exist"):
        go(file, model, tmp_path / "none" / "checks", budget=0)
