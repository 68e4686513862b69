"""Stage 5: does the file compute what the model computes?

The original model is the standard, on inputs the export never saw: other sizes, other batches, values that break
careless code. The same model in float64 is the truth; the file passes where it is as close to it as torch is.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path

import onnxruntime as ort
import torch
from torch import Tensor, nn

from poolexport.bundle import model_path
from poolexport.errors import FrozenAxisError, InputError, ParityError
from poolexport.pipeline import _resuming
from poolexport.pipeline._file_standard import FileStandard, drawn_outputs
from poolexport.pipeline._forms import Forms
from poolexport.pipeline._making import SENSITIVITY, Found, Making, Watch, judged
from poolexport.pipeline._opened import Opened
from poolexport.pipeline._plan import Step, distinct, plan
from poolexport.pipeline._standard import Standard
from poolexport.pipeline._state import random_states_kept
from poolexport.pipeline._trials import Given, Port, Trial, dynamic
from poolexport.pipeline._verdict import Check, LeftOut, Verdict
from poolexport.pipeline.frozen import freezer_in
from poolexport.pipeline.randomness import Policies, Settled, kept, settle
from poolexport.runtime import Source, Way, plain_session
from poolexport.tolerance import FACTOR, judge

Progress = Callable[[str, int, int], None]


def verify(
    path: Source,
    model: nn.Module | Source,
    example: Sequence[Tensor],
    *,
    factor: float = FACTOR,
    rtol: float | None = None,
    atol: float | None = None,
    seed: int = 0,
    randomness: Policies | None = None,
    audited: bool = False,
    variants: Sequence[Way] = (),
    extremes: bool = False,
    strict: bool = False,
    data: Sequence[Given] = (),
    budget: float | None = None,
    resume: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    watch: Watch | None = None,
) -> Verdict:
    """Compare a file with the model it was made from, or with another file.

    Args:
        path: a bundle, an .onnx file, or its bytes.
        model: the original, in eval mode; its buffers and the random states are left as they are. Or a file, whose own
            answers are then the truth.
        example: one input per graph input, of the traced shapes.
        factor: how many times farther from the truth than torch the file may be.
        rtol, atol: replace that rule by ``error <= atol + rtol * scale``.
        seed: of the values tried; the same seed gives the same verdict.
        randomness: the policies that the file was made with.
        variants: further ways of running the file, each tried on a few of the inputs.
        extremes: huge, tiny, infinite and NaN values are tried as well.
        strict: what the file answers to infinities and NaN counts; else it is only told.
        data: inputs that the model will meet, tried beside those that are drawn.
        budget: seconds after which no further check is begun, but for the example and normal values.
        resume: a file that grows by every check, and from which an earlier verification goes on.
        audited: the model was found to draw nothing and to leave its weights alone; it is not looked at again.
        progress: called with (stage, done, total).
        watch: called with every check, its inputs, what the file answered (or why it did not) and the truth.

    Raises:
        InputError: the file and the model do not belong together.
        ParityError: the answers differ; the error holds the verdict.
        FrozenAxisError: they differ at lengths of a dynamic axis that the trace never saw, and only there.
    """
    started = time.monotonic()
    if budget is not None and not budget >= 0:
        raise InputError(f"budget must be a number of seconds of at least 0, got {budget}")

    def over() -> bool:
        return budget is not None and time.monotonic() - started >= budget

    bounds = rule_of(factor, rtol, atol, "torch's" if isinstance(model, nn.Module) else f"{FileStandard.truth}'s")
    runtime = plain_session(path)
    ports: Sequence[ort.NodeArg | Port] = runtime.get_inputs()
    require_same_inputs(ports, example)
    standard: Standard | FileStandard
    if isinstance(model, nn.Module):
        standard = Standard(model, example, seed, sharing=audited)
        called = "torch"
    else:
        standard = FileStandard(model, runtime, example, seed)
        called = standard.truth
        ports = standard.ports
        require_same_inputs(ports, example)
    with random_states_kept(seed), Forms(path) as forms:
        if isinstance(standard, FileStandard):
            drawn = list(dict.fromkeys((*drawn_outputs(path), *standard.random)))
        else:
            settled = Settled() if audited else settle(standard.model, example, randomness)
            drawn = drawn_outputs(path) if kept(settled.policies) else []
        ways = distinct(variants, forms.different)
        steps = plan(ports, example, seed, extremes=extremes, data=data, ways=ways)
        earlier = _resuming.Nothing()
        if resume is not None:
            asked_for = [seed, factor, rtol, atol, strict, repr(randomness), *(step.facts for step in steps)]
            about = _resuming.about(path, model, example, asked_for)
            earlier = _resuming.Kept(Path(resume), about, [(step.trial.values, step.called) for step in steps])
        before = earlier.found()
        # whoever watches is shown those that he may want to keep
        anew = _worth_seeing(before, steps) if watch is not None else set()
        rule = partial(judge, sensitivity=SENSITIVITY, factor=factor, rtol=rtol, atol=atol, called=called)
        making = Making(path, standard, steps, partial(judged, drawn=drawn, rule=rule), strict=strict, watch=watch)
        found = Found()
        for way, group in groupby(enumerate(steps), key=lambda numbered: numbered[1].way):
            with Opened(runtime, way, forms) as opened:
                for number, step in group:
                    if progress is not None:
                        progress("verify", number, len(steps))
                    outcome = None if number in anew else before.get(number)
                    if step.trial in found.skipped:
                        continue
                    if outcome is None and number not in before and not step.always and over():
                        found.left_out.append(LeftOut(step.trial.values, step.shapes, step.called))
                        continue
                    if outcome is None:
                        outcome = making.outcome(opened, step, doubt=found.doubt)
                    if number not in before:
                        earlier.add(number, outcome)
                    found.add(step, outcome)
    if progress is not None:
        progress("verify", len(steps), len(steps))
    verdict = Verdict(
        tuple(found.checks),
        tuple(found.skipped.values()),
        standard.truth,
        bounds,
        tuple(drawn),
        tuple(found.left_out),
        tuple(dict.fromkeys(found.untried)),
    )
    if all(entry.runtime for entry in found.left_out):
        _require_unseen(verdict, ports, example)
    judgements = [judgement for check in verdict.checks for judgement in check.judgements]
    if judgements and not any(judgement.finite for judgement in judgements):
        state = model.state_dict() if isinstance(model, nn.Module) else {}
        spoilt = [name for name, t in state.items() if t.is_floating_point() and not t.isfinite().all()]
        where = f"; {spoilt[0]} holds NaN or infinities" if spoilt else ""
        raise InputError(f"the model answers nothing but NaN and infinities, so there is nothing to compare{where}")
    if verdict.word == "FAIL":
        failures = verdict.failures
        # a runtime that is wrong by itself says nothing about axes
        if isinstance(standard, Standard) and not all(check.runtime for check in failures):
            frozen = _frozen(path, standard, ports, verdict, found.tried, example)
            if frozen is not None:
                raise frozen
        what = "the model" if isinstance(standard, Standard) else standard.truth
        raise ParityError(
            f"the file does not compute what {what} computes: {len(failures)} of {len(verdict.checks)} checks failed; "
            f"first {failures[0].reason}",
            verdict,
        )
    return verdict


def _worth_seeing(before: Mapping[int, _resuming.Outcome], steps: Sequence[Step]) -> set[int]:
    """Of the steps made before, those that failed, and else those that came closest to their bounds."""
    checks = {number: found for number, found in before.items() if isinstance(found, Check) and found.counts}
    failures = {number for number, check in checks.items() if not check.passed}
    # what a runtime refuses shows nothing, and a process that hangs would do so again
    found = {number for number in failures if steps[number].way is None or checks[number].answered}
    if not failures:
        shares = {n: max((j.share for j in check.judgements), default=0.0) for n, check in checks.items()}
        closest = max(shares.values(), default=0.0)
        found |= {number for number, share in shares.items() if share >= closest / 2}
    return found


def _frozen(
    source: Source,
    standard: Standard,
    ports: Sequence[ort.NodeArg | Port],
    verdict: Verdict,
    tried: Sequence[Trial | Given],
    example: Sequence[Tensor],
) -> FrozenAxisError | None:
    """The error that names the module that froze an axis; None where the file is wrong at the traced lengths, too."""
    traced = verdict.checks[0].shapes
    if any(
        check.shapes == traced or isinstance(at, Given)
        for check, at in zip(verdict.checks, tried)
        if check.counts and not check.passed
    ):
        return None
    tallies: dict[tuple[int, int, str], dict[int, bool]] = {}
    alone: list[int] = []
    for number, check in enumerate(verdict.checks):
        moved = {
            dim: (position, axis, check.shapes[position][axis])
            for position, port in enumerate(ports)
            for axis, dim in dynamic(port)
            if check.shapes[position][axis] != traced[position][axis]
        }
        if len(moved) == 1:
            [(dim, (position, axis, length))] = moved.items()
            tally = tallies.setdefault((position, axis, dim), {})
            tally[length] = tally.get(length, True) and check.passed
            alone += [] if check.passed else [number]
    failed = [number for number, check in enumerate(verdict.checks) if check.counts and not check.passed]
    witness = (alone or failed)[0]
    seen = next((n for n, c in enumerate(verdict.checks) if c.shapes == traced and c.values == "normal"), 0)
    content = source if isinstance(source, bytes) else model_path(source).read_bytes()
    with random_states_kept():
        inputs = [standard.asked(tried[n].inputs(example)).inputs for n in (seen, witness)]
    freezer = freezer_in(content, standard.model, *inputs)
    if freezer is None:
        return None
    told, names = [], []
    for (position, axis, dim), tally in tallies.items():
        wrong = [length for length, passed in sorted(tally.items()) if not passed]
        if wrong:
            names.append(dim)
            state = f"is frozen at {traced[position][axis]}"
            if len(wrong) < len(tally):
                state = f"is right at some lengths only (wrong at {', '.join(map(str, wrong))})"
            told.append(f"axis {dim} of input {ports[position].name!r} {state}")
    told = told or ["the file is right only where the dynamic axes do not change together"]
    shapes = ", ".join("x".join(map(str, shape)) for shape in verdict.checks[witness].shapes)
    left = " and ".join(names) or "one of them"
    message = (
        f"{' and '.join(told)} by {freezer}: at {shapes} {freezer.found}; {freezer.remedy}, or leave {left} out of the "
        f"dynamic axes ({len(failed)} of {len(verdict.checks)} checks failed)"
    )
    return FrozenAxisError(message, verdict, tuple(names), freezer.path, freezer.source)


def rule_of(factor: float, rtol: float | None, atol: float | None, whose: str = "torch's") -> str:
    """The rule that answers are judged by, in words.

    Raises:
        InputError: a bound is not a number that bounds anything.
    """
    if not (math.isfinite(factor) and factor > 0):
        raise InputError(f"factor must be a positive number, got {factor}")
    for name, value in (("rtol", rtol), ("atol", atol)):
        if value is not None and not (math.isfinite(value) and value >= 0):
            raise InputError(f"{name} must be a number of at least 0, got {value}")
    if rtol is None and atol is None:
        return f"{factor:g} times {whose} own error, plus rounding"
    return f"atol {atol or 0.0:g} + rtol {rtol or 0.0:g} times the scale"


def require_same_inputs(ports: Sequence[ort.NodeArg | Port], example: Sequence[Tensor]) -> None:
    if not ports:
        raise InputError("the file has no inputs: its answer is a constant, and there is nothing to compare")
    if len(ports) != len(example):
        names = [port.name for port in ports]
        raise InputError(f"the file has {len(ports)} inputs {names}, but {len(example)} examples were given")
    for port, x in zip(ports, example):
        if not isinstance(x, Tensor):
            raise InputError(f"the example of input {port.name!r} is {type(x).__name__}; give a torch.Tensor")
        fixed = [(i, n) for i, n in enumerate(port.shape) if isinstance(n, int)]
        if len(port.shape) != x.dim() or any(x.shape[i] != n for i, n in fixed):
            raise InputError(f"input {port.name!r} of the file has shape {port.shape}, the example {list(x.shape)}")
        expected = ONNX_TYPES.get(x.dtype)
        if port.type != expected:
            raise InputError(f"input {port.name!r} of the file is {port.type}, the example {expected or x.dtype}")


ONNX_TYPES = {
    torch.float32: "tensor(float)",
    torch.float64: "tensor(double)",
    torch.float16: "tensor(float16)",
    torch.bfloat16: "tensor(bfloat16)",
    torch.int64: "tensor(int64)",
    torch.int32: "tensor(int32)",
    torch.int16: "tensor(int16)",
    torch.int8: "tensor(int8)",
    torch.uint8: "tensor(uint8)",
    torch.bool: "tensor(bool)",
}


def _require_unseen(verdict: Verdict, ports: Sequence[ort.NodeArg | Port], example: Sequence[Tensor]) -> None:
    """Every axis that is called dynamic must have been tried at a length the trace never saw."""
    for position, (port, x) in enumerate(zip(ports, example)):
        for axis, dim in dynamic(port):
            if not any(check.shapes[position][axis] != x.shape[axis] for check in verdict.checks):
                reason = verdict.skipped[0] if verdict.skipped else "no other length was tried"
                raise InputError(
                    f"axis {dim} of input {port.name!r} is dynamic in name only: {reason}; leave {dim} out of the "
                    "dynamic axes, or pool to a fixed size before what fails"
                )
