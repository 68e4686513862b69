"""How close is close enough: the one place where bounds are set.

Truth is the model in float64. A runtime result is right where it is as close to the truth as torch is in the same
precision, within a factor, because both round differently and neither is privileged. A floor in units of the last place
keeps that bound from being 0 where torch happens to be exact.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

#: A result may be this many times farther from the truth than torch in the same precision ...
FACTOR = 4.0
#: ... plus this many units of rounding, at the scale of the whole answer. Long float32 sums need them: onnxruntime
#: adds up rows of a thousand cells one after the other. Sums of half precision are made in float32, and rounded once.
FLOOR_ULPS = {"float64": 32.0, "float32": 32.0, "float16": 4.0}

#: Where rounding moves some values by more than this share of the scale, an operator took other cells, and the largest
#: error says nothing of the other values ...
JUMP = 0.125
#: ... so that no more than this share of them may be farther off than rounding moves that very value.
STRAYS = 0.25

#: What is farther off than rounding explains is still of use where it is within this share of the scale, and at least
#: so large a share of the largest entries (the class of a classifier, the label of a pixel) stay where they were.
USABLE, AGREEING = 1e-2, 0.99
#: Grades of an answer and of a whole file, best first.
GRADES = ("EXACT", "WITHIN ROUNDING", "WITHIN TOLERANCE", "DEGRADED", "WRONG", "REFUSED")

#: Bounds on one layer against its float64 reference, relative to each element and to the scale of the answer; for
#: float16 four units in the last place, and in no type less than four of its smallest numbers.
REFERENCE_RTOL = {"float64": 1e-12, "float32": 1e-5, "float16": 4 * 2.0**-10}
REFERENCE_ATOL = {"float64": 1e-14, "float32": 1e-6, "float16": 0.0}


@dataclass(frozen=True)
class Judgement:
    """One output compared.

    Args:
        passed: whether the result is right.
        error: largest distance of the result from the truth.
        peer_error: largest distance of torch, in the same precision, from the truth.
        bound: the distance that was allowed.
        scale: largest finite magnitude of the truth.
        reason: why it failed; empty where it passed.
        finite: whether any number was compared.
        equal: share of the values that are those of torch, to the last bit.
        ulps: the error in units in the last place of the scale.
        agree: share of the places where the largest entry along axis 1 is that of the truth; None where there is no
            such axis. Places where torch itself has another are left out.
        stray: values that are NaN or infinite where they should not be, or the reverse.
        grade: one of ``GRADES``.
    """

    passed: bool
    error: float
    peer_error: float
    bound: float
    scale: float
    reason: str = ""
    finite: bool = True
    equal: float = 0.0
    ulps: float = 0.0
    agree: float | None = None
    stray: int = 0
    grade: str = "WRONG"

    @property
    def share(self) -> float:
        """The error as a share of what was allowed; infinite where nothing was allowed and it is not 0.

        Example:
            >>> Judgement(True, 1e-7, 0.0, 4e-7, 1.0).share
            0.25
        """
        if self.bound:
            return self.error / self.bound
        return float("inf") if self.error else 0.0


def judge(
    result: np.ndarray,
    peer: np.ndarray,
    truth: np.ndarray,
    *,
    moved: np.ndarray | None = None,
    others: Sequence[np.ndarray] = (),
    sensitivity: float = 0.0,
    factor: float = FACTOR,
    rtol: float | None = None,
    atol: float | None = None,
    called: str = "torch",
) -> Judgement:
    """Judge ``result`` by ``truth``, as leniently as ``peer`` (torch in the same precision) makes necessary.

    Maps of NaN, +inf and -inf must be those of the truth, as it is or rounded to the type of the result, or, element by
    element, those of the peer. Integers must be equal to those of the truth or the peer. ``moved`` is the truth for
    inputs and weights that are rounded differently: where it differs from the truth, rounding is magnified, and the
    bound grows with it; where it has another shape it says nothing. ``others`` are answers that the peer might have
    given as well, rounding otherwise at every step: its error is then the largest of all of these, and a value may be
    NaN or infinite where it is that in one of them. Integers they do not excuse. Where the bound is as large as the
    answers themselves, every value is compared with how far torch is off at that very place, too, and most of them must
    hold. User-set ``rtol`` and ``atol`` replace the derived bound by ``atol + rtol * scale``. ``called`` is what
    messages call the peer.
    """
    if result.shape != peer.shape:
        return failed(f"shape {result.shape} instead of {peer.shape}")
    if result.dtype != peer.dtype:
        return failed(f"type {result.dtype} instead of {peer.dtype}")
    if not np.issubdtype(peer.dtype, np.floating):
        unsure = moved != truth if moved is not None and moved.shape == truth.shape else np.zeros(peer.shape, bool)
        wrong = int(np.count_nonzero((result != peer) & (result != truth) & ~unsure))
        equal = float(np.mean(result == peer)) if result.size else 1.0
        grade = "WRONG" if wrong else "EXACT" if equal == 1.0 else "WITHIN ROUNDING"
        reason = f"{wrong} integers differ" if wrong else ""
        return Judgement(wrong == 0, float(wrong), 0.0, 0.0, 0.0, reason, equal=equal, grade=grade)

    truth = truth.astype(np.float64)
    kinds = _kind(result)
    peers = [peer, *(other for other in others if other.shape == peer.shape)]
    with np.errstate(over="ignore"):
        stray = (kinds != _kind(truth)) & (kinds != _kind(truth.astype(peer.dtype)))
    for other in peers:
        stray &= kinds != _kind(other)
    # A number where the truth is none is one of the peers'; it has to be theirs.
    given = truth
    for other in peers:
        truth = np.where(np.isfinite(truth), truth, other)
    finite = np.isfinite(result) & np.isfinite(truth)
    scale = _largest(truth[np.isfinite(truth)])
    error = _largest(result[finite].astype(np.float64) - truth[finite])
    shift = _distance(moved, truth) if moved is not None and moved.shape == truth.shape else 0.0
    peer_error = max(_distance(other, truth) for other in peers)
    strays = 0.0
    if rtol is None and atol is None:
        floor = FLOOR_ULPS[peer.dtype.name] * _rounding(peer.dtype, scale)
        bound = factor * peer_error + sensitivity * shift + floor
        if floor < JUMP * scale < bound:
            moves = factor * _off(peers, truth)
            if shift:
                moves = moves + sensitivity * _off([moved], truth)
            strays = _share_beyond(result, truth, moves, floor)
    else:
        bound = (atol or 0.0) + (rtol or 0.0) * scale
    if stray.any():
        where = tuple(int(i) for i in np.argwhere(stray)[0])
        reason = (
            f"{int(stray.sum())} of {stray.size} values are NaN or infinite where they should not be, or the "
            f"reverse: at {where} got {result[where]}, {called} {peer[where]}, truth {given[where]}"
        )
    elif error > bound:
        reason = f"error {error:.3g} exceeds {bound:.3g} ({called} itself: {peer_error:.3g})"
    elif strays > STRAYS:
        reason = f"{strays:.0%} of the values differ where {called}'s do not, by up to {error:.3g}"
    else:
        reason = ""
    equal = _share_equal(result, peer)
    agree = _agreement(result, peer, truth)
    if not reason:
        grade = "EXACT" if equal == 1.0 else "WITHIN ROUNDING" if rtol is None and atol is None else "WITHIN TOLERANCE"
    elif not stray.any() and error <= USABLE * scale and (agree is None or agree >= AGREEING):
        grade = "DEGRADED"
    else:
        grade = "WRONG"
    return Judgement(
        not reason,
        error,
        peer_error,
        bound,
        scale,
        reason,
        bool(finite.any()) or not truth.size,
        equal,
        error / _rounding(peer.dtype, scale),
        agree,
        int(stray.sum()),
        grade,
    )


def failed(reason: str, grade: str = "WRONG") -> Judgement:
    """An answer that cannot be compared; REFUSED where there is none."""
    return Judgement(False, float("inf"), 0.0, 0.0, 0.0, reason, grade=grade)


def worst(grades: Iterable[str]) -> str:
    """The worst of some grades; the best there is where there are none."""
    return max(grades, key=GRADES.index, default=GRADES[0])


def _share_equal(result: np.ndarray, peer: np.ndarray) -> float:
    same = (result == peer) | (np.isnan(result) & np.isnan(peer))
    return float(same.mean()) if same.size else 1.0


def _agreement(result: np.ndarray, peer: np.ndarray, truth: np.ndarray) -> float | None:
    if result.ndim < 2 or result.shape[1] < 2 or not result.size:
        return None
    largest, sure = truth.argmax(1), truth.argmax(1) == peer.argmax(1)
    return float((result.argmax(1) == largest)[sure].mean()) if sure.any() else None


def _kind(x: np.ndarray) -> np.ndarray:
    """0 for finite values, 1 for +inf, -1 for -inf, 2 for NaN."""
    return np.where(np.isnan(x), 2, np.where(np.isinf(x), np.sign(x), 0)).astype(np.int8)


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    """The largest distance of numbers that are finite in both."""
    both = np.isfinite(a) & np.isfinite(b)
    return _largest(a[both].astype(np.float64) - b[both])


def _off(answers: Sequence[Any], truth: np.ndarray) -> np.ndarray:
    """How far the farthest answer is off, value by value; 0 where one of the two is no number."""
    with np.errstate(invalid="ignore"):
        distances = [np.abs(answer.astype(np.float64) - truth) for answer in answers]
    return np.max([np.where(np.isfinite(d), d, 0.0) for d in distances], axis=0)


def _share_beyond(result: np.ndarray, truth: np.ndarray, moves: np.ndarray, floor: float) -> float:
    """The share of values that are farther off than rounding moves them, or the median of all."""
    off = _off([result], truth)
    return float(np.mean(off > moves + np.median(moves) + floor))


def _largest(x: np.ndarray) -> float:
    return float(np.abs(x).max()) if x.size else 0.0


def _rounding(dtype: np.dtype, scale: float) -> float:
    """Size of one unit in the last place at ``scale``; never below the smallest number of the type."""
    info = np.finfo(dtype)
    return max(float(info.eps) * scale, float(info.smallest_subnormal))
