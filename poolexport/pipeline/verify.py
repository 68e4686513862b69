"""Stage 5: does the file compute what the model computes?

The original model is the standard, on inputs the export never saw: other sizes, other batches, values that break
careless code. The same model in float64 is the truth; the file passes where it is as close to it as torch is.
"""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import cycle, repeat

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import torch
from torch import Tensor, nn

from poolexport import stress
from poolexport.bundle import model_path
from poolexport.errors import FrozenAxisError, InputError, ParityError
from poolexport.graph import random_outputs
from poolexport.pipeline._rounding import rounded_otherwise
from poolexport.pipeline._run import copy_of, run
from poolexport.pipeline._state import random_states_kept, tensors_of
from poolexport.pipeline.frozen import freezer_in
from poolexport.pipeline.randomness import Policies, Settled, kept, settle
from poolexport.runtime import Source, session
from poolexport.tolerance import FACTOR, Judgement, judge

#: How far the lengths of dynamic axes move away from the traced ones: larger, odd, smaller.
STEPS = (1, 2, 5, -1)
BATCHES = (1, 3, 5)
#: Axes longer than this are tried at half as long again instead of twice as long, which would take four times as long.
LONG = 128
#: An answer may be this many times as far from the truth as the truth itself moves when every input and weight is
#: rounded differently by one unit: heads that subtract, divide or take roots magnify rounding in every runtime.
SENSITIVITY = 4.0
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Check:
    """One input tried: which values, at which shapes, and how every output was judged."""

    values: str
    shapes: tuple[tuple[int, ...], ...]
    judgements: tuple[Judgement, ...]

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
        return f"{self.values} values at {shapes}: {reasons}"


@dataclass(frozen=True)
class Verdict:
    """Every check that was made.

    Args:
        checks: the inputs tried.
        skipped: shapes that the model itself refuses, with its reason.
        truth: "float64", or "float32" where the model cannot run in float64.
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
    def failures(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if not check.passed)

    @property
    def worst_error(self) -> float:
        """Largest error against the truth, relative to the scale of its output."""
        return max((check.relative_error for check in self.checks), default=0.0)


def verify(
    path: Source,
    model: nn.Module,
    example: Sequence[Tensor],
    *,
    factor: float = FACTOR,
    rtol: float | None = None,
    atol: float | None = None,
    seed: int = 0,
    randomness: Policies | None = None,
    audited: bool = False,
    progress: Progress | None = None,
) -> Verdict:
    """Compare a file with the model it was made from.

    Args:
        path: a bundle, an .onnx file, or its bytes.
        model: the original, in eval mode; its buffers and the random states are left as they are.
        example: one input per graph input, of the traced shapes.
        factor: how many times farther from the truth than torch the file may be.
        rtol, atol: replace that rule by ``error <= atol + rtol * scale``.
        seed: of the values tried; the same seed gives the same verdict.
        randomness: the policies that the file was made with.
        audited: the model was found to draw nothing and to leave its weights alone; it is not looked at again.
        progress: called with (stage, done, total).

    Raises:
        InputError: the file and the model do not belong together.
        ParityError: the answers differ; the error holds the verdict.
        FrozenAxisError: they differ at lengths of a dynamic axis that the trace never saw, and only there.
    """
    bounds = rule_of(factor, rtol, atol)
    runtime = session(path)
    ports = runtime.get_inputs()
    require_same_inputs(ports, example)
    # A copy takes the wear: the model may count its calls in places that no state_dict knows.
    original = copy_of(model, sharing=audited)
    with random_states_kept(seed):
        settled = Settled() if audited else settle(original, example, randomness)
        drawn = _random_outputs(path) if kept(settled.policies) else []
        precise = in_float64(original, example)
        shaken = cache(lambda precise: with_shaken_weights(precise, example, seed))
        plan = list(_trials(ports, example, seed))
        checks, skipped, tried = [], [], []
        wrong = False
        for done, trial in enumerate(plan):
            if progress is not None:
                progress("verify", done, len(plan))
            inputs = trial.inputs(example)
            try:
                inputs, peers = _accepted(original, inputs, example)
            except InputError as error:
                skipped.append(str(error))
                continue
            truths = answers_in_double(precise, inputs) if precise else peers
            results = run_file(runtime, ports, inputs)
            compare = partial(
                judgements_of, runtime, results, peers, truths, drawn, factor=factor, rtol=rtol, atol=atol
            )
            judgements = compare()
            # What follows can only widen the bound: what is right without it needs no more runs.
            if precise and not _all_passed(judgements):
                moved = answers_in_double(shaken(precise), rounded_anew(inputs, seed))
                judgements = compare(moved=moved)
                if not wrong and not _all_passed(judgements):
                    judgements = compare(moved=moved, others=rounded_otherwise(original, inputs, seed))
                    # A file that is wrong beyond doubt need not be examined so again.
                    wrong = not _all_passed(judgements)
            tried.append(trial)
            checks.append(Check(trial.values, tuple(tuple(x.shape) for x in inputs), judgements))
    if progress is not None:
        progress("verify", len(plan), len(plan))
    verdict = Verdict(tuple(checks), tuple(skipped), "float64" if precise else "float32", bounds, tuple(drawn))
    _require_unseen(verdict, ports, example)
    judged = [judgement for check in checks for judgement in check.judgements]
    if judged and not any(judgement.finite for judgement in judged):
        spoilt = [name for name, t in model.state_dict().items() if t.is_floating_point() and not t.isfinite().all()]
        where = f"; {spoilt[0]} holds NaN or infinities" if spoilt else ""
        raise InputError(f"the model answers nothing but NaN and infinities, so there is nothing to compare{where}")
    if verdict.word == "FAIL":
        failures = verdict.failures
        frozen = _frozen(path, original, ports, verdict, tried, example)
        if frozen is not None:
            raise frozen
        raise ParityError(
            f"the file does not compute what the model computes: {len(failures)} of {len(checks)} checks failed; "
            f"first {failures[0].reason}",
            verdict,
        )
    return verdict


def _all_passed(judgements: Sequence[Judgement]) -> bool:
    return all(judgement.passed for judgement in judgements)


def judgements_of(
    runtime: ort.InferenceSession,
    results: Sequence[np.ndarray] | str,
    peers: Sequence[np.ndarray],
    truths: Sequence[np.ndarray],
    drawn: Collection[str] = (),
    moved: Sequence[np.ndarray] | None = None,
    others: Sequence[Sequence[np.ndarray]] = (),
    **bounds: float | None,
) -> tuple[Judgement, ...]:
    """A judgement for every output of a file that is not ``drawn``, or one that says why it has none to judge."""
    if isinstance(results, str):
        return (Judgement(False, float("inf"), 0.0, 0.0, 0.0, results),)
    if len(results) != len(peers):
        reason = f"the file has {len(results)} outputs, the model {len(peers)}"
        return (Judgement(False, float("inf"), 0.0, 0.0, 0.0, reason),)
    judged = []
    for k, (port, r, p, t, m) in enumerate(zip(runtime.get_outputs(), results, peers, truths, moved or repeat(None))):
        if port.name not in drawn:
            also = [other[k] for other in others]
            judged.append(judge(r, p, t, moved=m, others=also, sensitivity=SENSITIVITY, **bounds))  # type: ignore[arg-type]
        elif (r.shape, r.dtype) != (p.shape, p.dtype):
            reason = f"{port.name}, which is random, is {r.dtype} of shape {r.shape} instead of {p.dtype} of {p.shape}"
            judged.append(Judgement(False, float("inf"), 0.0, 0.0, 0.0, reason))
    return tuple(judged)


def run_file(
    runtime: ort.InferenceSession, ports: Sequence[ort.NodeArg], inputs: Sequence[Tensor]
) -> list[np.ndarray] | str:
    """What the file answers, or why it does not."""
    try:
        return runtime.run(None, {port.name: x.numpy() for port, x in zip(ports, inputs)})
    except Exception as error:
        return f"onnxruntime failed: {str(error).strip().splitlines()[0]}"


def _frozen(
    source: Source,
    original: nn.Module,
    ports: Sequence[ort.NodeArg],
    verdict: Verdict,
    tried: Sequence[Trial],
    example: Sequence[Tensor],
) -> FrozenAxisError | None:
    """The error that names the module that froze an axis; None where the file is wrong at the traced lengths, too."""
    traced = verdict.checks[0].shapes
    if any(check.shapes == traced for check in verdict.failures):
        return None
    tallies: dict[tuple[int, int, str], dict[int, bool]] = {}
    alone: list[int] = []
    for number, check in enumerate(verdict.checks):
        moved = {
            dim: (position, axis, check.shapes[position][axis])
            for position, port in enumerate(ports)
            for axis, dim in _dynamic(port)
            if check.shapes[position][axis] != traced[position][axis]
        }
        if len(moved) == 1:
            [(dim, (position, axis, length))] = moved.items()
            tally = tallies.setdefault((position, axis, dim), {})
            tally[length] = tally.get(length, True) and check.passed
            alone += [] if check.passed else [number]
    failed = [number for number, check in enumerate(verdict.checks) if not check.passed]
    witness = (alone or failed)[0]
    seen = next((n for n, c in enumerate(verdict.checks) if c.shapes == traced and c.values == "normal"), 0)
    content = source if isinstance(source, bytes) else model_path(source).read_bytes()
    with random_states_kept():
        inputs = [_accepted(original, tried[n].inputs(example), example)[0] for n in (seen, witness)]
    freezer = freezer_in(content, original, *inputs)
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


def _random_outputs(source: Source) -> list[str]:
    model = ir.from_proto(onnx.load_from_string(source)) if isinstance(source, bytes) else ir.load(model_path(source))
    return random_outputs(model)


def _accepted(
    model: nn.Module, inputs: tuple[Tensor, ...], example: Sequence[Tensor]
) -> tuple[tuple[Tensor, ...], list[np.ndarray]]:
    """The inputs and the model's answer; where it refuses drawn values, those after the first input are the example's.

    A model may take no other values for boxes, say, or for lengths of sequences.
    """
    try:
        return inputs, [t.numpy() for t in tensors_of(run(model, inputs))]
    except InputError:
        if len(inputs) == 1:
            raise
    inputs = (inputs[0], *(_repeated(x, drawn.shape) for x, drawn in zip(example[1:], inputs[1:])))
    return inputs, [t.numpy() for t in tensors_of(run(model, inputs))]


def _repeated(x: Tensor, shape: Sequence[int]) -> Tensor:
    """``x`` over and over again along every axis, or only its beginning, up to a shape."""
    for axis, n in enumerate(shape):
        x = x.index_select(axis, torch.arange(n) % max(1, x.shape[axis]))
    return x


def rule_of(factor: float, rtol: float | None, atol: float | None) -> str:
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
        return f"{factor:g} times torch's own error, plus rounding"
    return f"atol {atol or 0.0:g} + rtol {rtol or 0.0:g} times the scale"


def answers_in_double(model: nn.Module, inputs: Sequence[Tensor]) -> list[np.ndarray]:
    """What a float64 model answers."""
    return [t.numpy() for t in tensors_of(run(model, in_double(inputs)))]


def with_shaken_weights(precise: nn.Module, example: Sequence[Tensor], seed: int) -> nn.Module:
    """The float64 model with every weight moved by one rounding unit of the example's type, up or down."""
    shaken = copy.deepcopy(precise)
    with torch.no_grad():
        for position, weight in enumerate([*shaken.parameters(), *shaken.buffers()]):
            if weight.is_floating_point():
                weight.mul_(shake(weight, unit_of(example), seed + position))
    return shaken


def rounded_anew(inputs: Sequence[Tensor], seed: int) -> tuple[Tensor, ...]:
    """Inputs in float64 with every value moved by one rounding unit, up or down.

    Whole numbers after the first input stay: they may be exact, as the number of the map that a box is on.
    """
    unit = unit_of(inputs)
    moved = [x.double() * shake(x, unit, seed + k) if x.is_floating_point() else x for k, x in enumerate(inputs)]
    for k, x in enumerate(inputs):
        if k and x.is_floating_point():
            moved[k] = torch.where(x == x.round(), x.double(), moved[k])
    return tuple(moved)


def shake(like: Tensor, unit: float, seed: int) -> Tensor:
    """Factors in float64 that move every cell of a tensor by ``unit``, up or down."""
    generator = torch.Generator().manual_seed(seed)
    signs = torch.empty(like.shape, dtype=torch.float64).random_(0, 2, generator=generator)
    return signs.mul_(2 * unit).add_(1 - unit)


def unit_of(inputs: Sequence[Tensor]) -> float:
    """Rounding unit of the inputs' floating type; float32's where there is none."""
    return next((torch.finfo(x.dtype).eps for x in inputs if x.is_floating_point()), torch.finfo(torch.float32).eps)


@dataclass(frozen=True)
class Trial:
    """One input to try, drawn when it is its turn: all at once would take more memory than the model.

    Args:
        values: a regime, or "example".
        shapes: of every input.
        seed: of the values.
    """

    values: str
    shapes: tuple[tuple[int, ...], ...]
    seed: int = 0

    def inputs(self, example: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The values, of the types of the example."""
        if self.values == "example":
            return tuple(example)
        numbered = enumerate(zip(example, self.shapes))
        return tuple(_draw(self.values, x, shape, self.seed + 1000 * k) for k, (x, shape) in numbered)


def _trials(ports: Sequence[ort.NodeArg], example: Sequence[Tensor], seed: int) -> Iterator[Trial]:
    """The example, then every regime of values at the traced shapes, then normal values and ties at unseen shapes."""
    same = tuple(tuple(x.shape) for x in example)
    yield Trial("example", same)
    traced = {dim: x.shape[i] for port, x in zip(ports, example) for i, dim in _dynamic(port)}
    for regime in stress.REGIMES:
        yield Trial(regime, same, seed)
    turns: defaultdict[tuple[str, ...], Iterator[str]] = defaultdict(lambda: cycle(("normal", "ties")))
    for lengths in _unseen(traced, {dim for port in ports for i, dim in _dynamic(port) if i == 0}):
        shapes = []
        for port, x in zip(ports, example):
            moved = {i: lengths[dim] for i, dim in _dynamic(port) if dim in lengths}
            shapes.append(tuple(moved.get(i, n) for i, n in enumerate(x.shape)))
        # Axes that move alone meet one kind of values after the other; where all move together, both are tried.
        for regime in ("normal", "ties") if len(lengths) == len(traced) else (next(turns[tuple(lengths)]),):
            yield Trial(regime, tuple(shapes), seed + 1)


def _dynamic(port: ort.NodeArg) -> list[tuple[int, str]]:
    """The axes that may change, by number and name; one without a name gets its own."""
    return [(i, dim or f"{port.name}.{i}") for i, dim in enumerate(port.shape) if not isinstance(dim, int)]


def _unseen(traced: Mapping[str, int], batches: set[str]) -> Iterator[dict[str, int]]:
    """Lengths of the dynamic axes that differ from the traced ones, each axis alone and all together."""
    sizes = {dim: n for dim, n in traced.items() if dim not in batches}
    for dim in batches & traced.keys():
        for batch in BATCHES:
            if batch != traced[dim]:
                yield {dim: batch}
    for step in STEPS:
        for turn, dim in enumerate(sizes):
            yield {dim: max(1, sizes[dim] + step * (turn + 1))}
    if len(traced) > 1:
        for step in STEPS:
            moved = {dim: max(1, n + step * (turn + 1)) for turn, (dim, n) in enumerate(sizes.items())}
            yield moved | dict.fromkeys(batches & traced.keys(), 1 + step % 4)
    if sizes:
        yield {dim: 2 * n + 1 if n <= LONG else n + n // 2 for dim, n in sizes.items()}
        yield {dim: max(1, n // 2) for dim, n in sizes.items()}


def _draw(regime: str, like: Tensor, shape: Sequence[int], seed: int) -> Tensor:
    """Values of a regime; integers are drawn from the range of the example's, pixels from all of theirs."""
    if like.is_floating_point():
        dtype = torch.empty(0, dtype=like.dtype).numpy().dtype
        return torch.from_numpy(stress.draw(regime, tuple(shape), dtype, seed))
    rng = np.random.default_rng([seed, *regime.encode()])
    pixels = like.dtype == torch.uint8 or not like.numel()
    low, high = (0, 255) if pixels else (int(like.min()), int(like.max()))
    return torch.from_numpy(np.asarray(rng.integers(low, high + 1, tuple(shape)))).to(like.dtype)


def in_float64(model: nn.Module, example: Sequence[Tensor]) -> nn.Module | None:
    """The model in float64, or None where it cannot run so."""
    try:
        # Each weight is copied once, into its new type.
        weights = {id(p): nn.Parameter(p.detach().double(), False) for p in model.parameters() if p.is_floating_point()}
        precise = copy.deepcopy(model, weights).double()
        run(precise, in_double(example))
    except Exception:
        return None
    return precise


def in_double(inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Inputs in float64; whole numbers as they are."""
    return tuple(x.double() if x.is_floating_point() else x for x in inputs)


def require_same_inputs(ports: Sequence[ort.NodeArg], example: Sequence[Tensor]) -> None:
    """Raise an InputError where a file cannot take the inputs, with the first that does not fit."""
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


def _require_unseen(verdict: Verdict, ports: Sequence[ort.NodeArg], example: Sequence[Tensor]) -> None:
    """Every axis that is called dynamic must have been tried at a length the trace never saw."""
    for position, (port, x) in enumerate(zip(ports, example)):
        for axis, dim in _dynamic(port):
            if not any(check.shapes[position][axis] != x.shape[axis] for check in verdict.checks):
                reason = verdict.skipped[0] if verdict.skipped else "no other length was tried"
                raise InputError(
                    f"axis {dim} of input {port.name!r} is dynamic in name only: {reason}; leave {dim} out of the "
                    "dynamic axes, or pool to a fixed size before what fails"
                )
