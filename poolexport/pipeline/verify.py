"""Stage 5: does the file compute what the model computes?

The original model is the standard, on inputs the export never saw: other sizes, other batches, values that break
careless code. The same model in float64 is the truth; the file passes where it is as close to it as torch is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import repeat

import numpy as np
import onnxruntime as ort
import torch
from torch import Tensor, nn

from poolexport import stress
from poolexport.bundle import model_path
from poolexport.errors import FrozenAxisError, InputError, ParityError
from poolexport.pipeline._file_standard import FileAsked, FileStandard, drawn_outputs
from poolexport.pipeline._standard import Asked, Standard
from poolexport.pipeline._state import random_states_kept
from poolexport.pipeline._trials import Given, Port, Trial, dynamic, trials
from poolexport.pipeline.frozen import freezer_in
from poolexport.pipeline.randomness import Policies, Settled, kept, settle
from poolexport.runtime import Source, Variant, plain_session
from poolexport.tolerance import FACTOR, Judgement, failed, judge, worst

#: An answer may be this many times as far from the truth as the truth itself moves when every input and weight is
#: rounded differently by one unit: heads that subtract, divide or take roots magnify rounding in every runtime.
SENSITIVITY = 4.0
#: Values that are tried on further variants of the runtime, beside the first.
AGAIN = ("example", "ties", "spike")
Progress = Callable[[str, int, int], None]
Rule = Callable[..., Judgement]


@dataclass(frozen=True)
class Check:
    """One input tried: which values, at which shapes, how every output was judged, and how the file was run.

    What does not count says how the file answers to NaN and infinities, and no more.
    """

    values: str
    shapes: tuple[tuple[int, ...], ...]
    judgements: tuple[Judgement, ...]
    runtime: str = ""
    counts: bool = True

    @property
    def passed(self) -> bool:
        return _all_passed(self.judgements)

    @property
    def relative_error(self) -> float:
        return max((j.error / j.scale if j.scale > j.error else j.error for j in self.judgements), default=0.0)

    @property
    def reason(self) -> str:
        shapes = ", ".join("x".join(map(str, shape)) for shape in self.shapes)
        reasons = "; ".join(j.reason for j in self.judgements if j.reason)
        runtime = f" ({self.runtime})" if self.runtime else ""
        return f"{self.values} values at {shapes}{runtime}: {reasons}"


#: Told of every check as it is made: the inputs, what the file answered or why it did not, and the truth.
Watch = Callable[[Check, Sequence[Tensor], "list[np.ndarray] | str", Sequence[np.ndarray]], None]


@dataclass(frozen=True)
class Verdict:
    """Every check that was made.

    Args:
        checks: the inputs tried.
        skipped: shapes that the model itself refuses, with its reason.
        truth: "float64", or "float32" where the model cannot run in float64; "the second file" where there is no model.
        bound: how far an answer was allowed to be from the truth.
        random: names of the outputs that the file draws; of those, only shape and type were compared.
    """

    checks: tuple[Check, ...]
    skipped: tuple[str, ...] = ()
    truth: str = "float64"
    bound: str = ""
    random: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every output was compared, and is right."""
        return self.word == "PASS"

    @property
    def word(self) -> str:
        """One of "PASS", "FAIL", and "UNVERIFIED", where nothing is wrong but random outputs could not be compared."""
        if not self.checks or self.failures:
            return "FAIL"
        return "UNVERIFIED" if self.random else "PASS"

    @property
    def grade(self) -> str:
        """The worst grade of all answers, one of ``tolerance.GRADES``."""
        return worst(judgement.grade for check in self.checks if check.counts for judgement in check.judgements)

    @property
    def failures(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if check.counts and not check.passed)

    @property
    def remarks(self) -> tuple[Check, ...]:
        """Checks that do not count, on which the file answers otherwise than the model."""
        return tuple(check for check in self.checks if not check.counts and not check.passed)

    @property
    def worst_error(self) -> float:
        """Largest error against the truth, relative to the scale of its output."""
        return max((check.relative_error for check in self.checks if check.counts), default=0.0)


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
    variants: Sequence[Variant] = (),
    extremes: bool = False,
    strict: bool = False,
    data: Sequence[Given] = (),
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
        audited: the model was found to draw nothing and to leave its weights alone; it is not looked at again.
        progress: called with (stage, done, total).
        watch: called with every check, its inputs, what the file answered (or why it did not) and the truth.

    Raises:
        InputError: the file and the model do not belong together.
        ParityError: the answers differ; the error holds the verdict.
        FrozenAxisError: they differ at lengths of a dynamic axis that the trace never saw, and only there.
    """
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
    with random_states_kept(seed):
        if isinstance(standard, FileStandard):
            drawn = list(dict.fromkeys((*drawn_outputs(path), *standard.random)))
        else:
            settled = Settled() if audited else settle(standard.model, example, randomness)
            drawn = drawn_outputs(path) if kept(settled.policies) else []
        rule = partial(judge, sensitivity=SENSITIVITY, factor=factor, rtol=rtol, atol=atol, called=called)
        judging = partial(judged, drawn=drawn, rule=rule)
        drawn_up = list(trials(ports, example, seed, extremes=extremes))
        plan: list[Trial | Given] = [*drawn_up, *data]
        again_on = _few(drawn_up)
        total = len(plan) + len(variants) * len(again_on)
        checks: list[Check] = []
        skipped: list[str] = []
        tried: list[Trial | Given] = []
        again: list[tuple[Trial | Given, Asked | FileAsked]] = []
        # A file that is wrong beyond doubt need not be examined so again.
        doubt = True

        def check(opened: ort.InferenceSession, trial: Trial | Given, asked: Asked | FileAsked, way: str = "") -> None:
            nonlocal doubt
            results, judgements = judging(opened, asked, doubt=doubt)
            counts = strict or trial.values not in stress.NOT_NUMBERS
            doubt = doubt and (_all_passed(judgements) or not counts)
            tried.append(trial)
            checks.append(Check(trial.values, asked.shapes, judgements, way, counts))
            if watch is not None:
                watch(checks[-1], asked.inputs, results, asked.truths)

        for done, trial in enumerate(plan):
            if progress is not None:
                progress("verify", done, total)
            inputs = trial.inputs(example)
            try:
                asked = standard.asked(inputs)
            except InputError as error:
                skipped.append(str(error))
                continue
            check(runtime, trial, asked)
            if variants and trial in again_on:
                again.append((trial, asked))
        for number, variant in enumerate(variants):
            opened = variant.open(path)
            for k, (trial, asked) in enumerate(again):
                if progress is not None:
                    progress("verify", len(plan) + number * len(again) + k, total)
                check(opened, trial, asked, str(variant))
    if progress is not None:
        progress("verify", total, total)
    verdict = Verdict(tuple(checks), tuple(skipped), standard.truth, bounds, tuple(drawn))
    _require_unseen(verdict, ports, example)
    found = [judgement for check in checks for judgement in check.judgements]
    if found and not any(judgement.finite for judgement in found):
        state = model.state_dict() if isinstance(model, nn.Module) else {}
        spoilt = [name for name, t in state.items() if t.is_floating_point() and not t.isfinite().all()]
        where = f"; {spoilt[0]} holds NaN or infinities" if spoilt else ""
        raise InputError(f"the model answers nothing but NaN and infinities, so there is nothing to compare{where}")
    if verdict.word == "FAIL":
        failures = verdict.failures
        if isinstance(standard, Standard):
            frozen = _frozen(path, standard, ports, verdict, tried, example)
            if frozen is not None:
                raise frozen
        what = "the model" if isinstance(standard, Standard) else standard.truth
        raise ParityError(
            f"the file does not compute what {what} computes: {len(failures)} of {len(checks)} checks failed; "
            f"first {failures[0].reason}",
            verdict,
        )
    return verdict


def _few(plan: Sequence[Trial]) -> list[Trial]:
    """What is tried again on other variants: the example, ties, a spike, and the last other size."""
    traced = [trial for trial in plan if trial.shapes == plan[0].shapes and trial.values in AGAIN]
    return traced + [trial for trial in plan[-1:] if trial.shapes != plan[0].shapes]


def judged(
    runtime: ort.InferenceSession,
    asked: Asked | FileAsked,
    *,
    doubt: bool,
    drawn: Collection[str],
    rule: Rule,
) -> tuple[list[np.ndarray] | str, tuple[Judgement, ...]]:
    """What a run answers, and how it is judged; what may widen a bound is asked for only where that may matter."""
    results = _run_file(runtime, runtime.get_inputs(), asked.inputs)
    compare = partial(_compare, runtime, results, asked.peers, asked.truths, drawn, rule)
    judgements = compare()
    if not _all_passed(judgements) and asked.moved is not None:
        judgements = compare(moved=asked.moved)
        if doubt and not _all_passed(judgements):
            judgements = compare(moved=asked.moved, others=asked.others)
    return results, judgements


def _all_passed(judgements: Sequence[Judgement]) -> bool:
    return all(judgement.passed for judgement in judgements)


def _compare(
    runtime: ort.InferenceSession,
    results: Sequence[np.ndarray] | str,
    peers: Sequence[np.ndarray],
    truths: Sequence[np.ndarray],
    drawn: Collection[str],
    rule: Rule,
    moved: Sequence[np.ndarray] | None = None,
    others: Sequence[Sequence[np.ndarray]] = (),
) -> tuple[Judgement, ...]:
    if isinstance(results, str):
        return (failed(results, "REFUSED"),)
    if len(results) != len(peers):
        reason = f"the file has {len(results)} outputs, the model {len(peers)}"
        return (failed(reason),)
    judged = []
    for k, (port, r, p, t, m) in enumerate(zip(runtime.get_outputs(), results, peers, truths, moved or repeat(None))):
        if port.name not in drawn:
            also = [other[k] for other in others]
            judged.append(rule(r, p, t, moved=m, others=also))
        elif (r.shape, r.dtype) != (p.shape, p.dtype):
            reason = f"{port.name}, which is random, is {r.dtype} of shape {r.shape} instead of {p.dtype} of {p.shape}"
            judged.append(failed(reason))
    return tuple(judged)


def _run_file(
    runtime: ort.InferenceSession, ports: Sequence[ort.NodeArg], inputs: Sequence[Tensor]
) -> list[np.ndarray] | str:
    """What the file answers, or why it does not."""
    try:
        return runtime.run(None, {port.name: x.numpy() for port, x in zip(ports, inputs)})
    except Exception as error:
        return f"onnxruntime failed: {str(error).strip().splitlines()[0]}"


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
