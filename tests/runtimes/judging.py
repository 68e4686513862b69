"""What is to be run in every runtime, and whether what came back is right."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from poolexport.runtime.traps import LOADS, Release, missing, spell
from poolexport.tolerance import judge

#: How much more than the truth itself moves by rounding an answer may be off.
SENSITIVITY = 4.0


@dataclass(frozen=True)
class Job:
    """One model, one input, optimised or not.

    Args:
        group: "corpus", "native" for the same on our kernels, "trap", "kernel" or "loads".
        name: what it is.
        model, feed: files in the corpus folder; without a feed the model is only loaded.
        optimised: whether onnxruntime optimises the graph.
        opset: of the model.
        detail: what the group needs to know: ``dtype`` and ``operator`` of a kernel, ``ir_version`` of a model.
        expected: for a corpus job, (torch's answer, truth, truth of rounded inputs) for every output; for a trap, the
            right answer.
        faults: for a corpus job, what ``for_ort`` refuses, by release.
        rtol: of a trap.
        atol: of a corpus job: how far a formula that magnifies float64's own rounding may be off by that alone.
        operators: that have to run on native kernels.
    """

    group: str
    name: str
    model: str
    feed: str
    optimised: bool
    opset: int
    detail: Mapping[str, object] = field(default_factory=dict)
    expected: tuple[object, ...] = ()
    faults: Mapping[Release, tuple[str, ...]] = field(default_factory=dict)
    rtol: float = 0.0
    atol: float = 0.0
    operators: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What a runtime did: its answers, or "load", "run" or "died" and a message."""

    answers: tuple[np.ndarray, ...] = ()
    failed: str = ""
    message: str = ""


@dataclass(frozen=True)
class Line:
    """The judgement of one job in one runtime: "ok", "declared" or "WRONG", and why."""

    release: Release
    job: Job
    word: str
    reason: str = ""


def judge_job(job: Job, outcome: Outcome, release: Release) -> Line:
    """Whether a runtime did what the tables and the expected answers say."""
    loads = job.opset <= LOADS[release][0] and int(str(job.detail.get("ir_version", 0))) <= LOADS[release][1]
    if not loads:
        if outcome.failed == "load":
            return Line(release, job, "declared", "this opset or IR version is not loaded")
        return Line(release, job, "WRONG", "the table says that this opset or IR version is not loaded, but it is")
    if job.group == "loads":
        return _said(release, job, not outcome.failed, outcome.message)
    if job.group == "kernel":
        lacking = missing(release, job.opset, str(job.detail["operator"]), str(job.detail["dtype"]))
        if lacking != bool(outcome.failed):
            told = "is" if lacking else "is not"
            return Line(release, job, "WRONG", f"the table says that the kernel {told} missing {outcome.message}")
        return Line(release, job, "declared" if lacking else "ok")
    reasons = _differences(job, outcome)
    if not reasons:
        return Line(release, job, "ok")
    declared = job.faults.get(release, ())
    return Line(release, job, "declared" if declared else "WRONG", "; ".join(declared or reasons))


def _said(release: Release, job: Job, right: bool, message: str) -> Line:
    return Line(release, job, "ok" if right else "WRONG", message)


def _differences(job: Job, outcome: Outcome) -> list[str]:
    if outcome.failed:
        return [f"{outcome.failed}: {outcome.message}"]
    if len(outcome.answers) != len(job.expected):
        return [f"{len(outcome.answers)} outputs instead of {len(job.expected)}"]
    if job.group == "trap":
        (expected,) = job.expected
        assert isinstance(expected, np.ndarray)
        return [] if near(outcome.answers[0], expected, job.rtol) else ["another answer"]
    reasons = []
    for answer, expected in zip(outcome.answers, job.expected):
        peer, truth, moved = expected  # type: ignore[misc]
        judged = judge(answer, peer, truth, moved=moved, sensitivity=SENSITIVITY)
        if judged.reason and not (judged.reason.startswith("error") and judged.error <= judged.bound + job.atol):
            reasons.append(judged.reason)
    return reasons


def near(answer: np.ndarray, expected: np.ndarray, rtol: float) -> bool:
    """Whether an answer is the expected one, NaN and infinities included."""
    if answer.shape != expected.shape or answer.dtype != expected.dtype:
        return False
    finite = np.isfinite(expected)
    if not np.array_equal(answer[~finite], expected[~finite], equal_nan=True):
        return False
    scale = np.abs(expected[finite]).max(initial=0.0)
    return bool(np.abs(answer[finite].astype(np.float64) - expected[finite]).max(initial=0.0) <= rtol * scale)


def judge_traps(lines: Iterable[tuple[Job, Outcome]], release: Release, traps: Iterable[object]) -> list[Line]:
    """One line for every row of the table of traps: is the fault there exactly where the row says?"""
    seen: dict[str, list[tuple[Job, Outcome]]] = {}
    for job, outcome in lines:
        seen.setdefault(job.name, []).append((job, outcome))
    result = []
    for trap in traps:
        tried = [
            (job, outcome)
            for job, outcome in seen.get(trap.name, [])  # type: ignore[attr-defined]
            if trap.opsets[0] <= job.opset <= trap.opsets[1] and job.opset <= LOADS[release][0]  # type: ignore[attr-defined]
        ]
        found = [f"opset {job.opset}" for job, outcome in tried if _differences(job, outcome)]
        said = trap.concerns(release)  # type: ignore[attr-defined]
        job = tried[0][0] if tried else Job("trap", trap.name, "", "", True, 0)  # type: ignore[attr-defined]
        if not tried and said:
            result.append(Line(release, job, "WRONG", "the row concerns this release, but no graph shows it"))
        elif tried and said != bool(found):
            shown = f"it is there ({', '.join(dict.fromkeys(found))})" if found else "it is not"
            told = f"the row says that {spell(release)} {'has' if said else 'does not have'} the fault, but {shown}"
            result.append(Line(release, job, "WRONG", told))
        elif tried:
            result.append(Line(release, job, "declared" if said else "ok"))
    return result


def save(folder: Path, jobs: list[Job]) -> None:
    """Write the jobs: for the runtimes what to run, for the judge what to expect."""
    keys = ("model", "feed", "optimised", "operators")
    plain = [{key: getattr(job, key) for key in keys} for job in jobs]
    (folder / "jobs.json").write_text(json.dumps(plain))
    (folder / "expected.pickle").write_bytes(pickle.dumps(jobs))


def outcomes(results: Path, count: int, died: Iterable[int]) -> list[Outcome]:
    """What a runtime left in its folder of results."""
    ended = set(died)
    found = []
    for number in range(count):
        if number in ended:
            found.append(Outcome(failed="died", message="the process ended"))
        elif (results / f"{number}.json").is_file():
            [(kind, message)] = json.loads((results / f"{number}.json").read_text()).items()
            found.append(Outcome(failed=kind, message=message))
        elif (results / f"{number}.npz").is_file():
            with np.load(results / f"{number}.npz") as file:
                found.append(Outcome(tuple(file[name] for name in file.files)))
        else:
            found.append(Outcome(failed="died", message="there is no answer"))
    return found
