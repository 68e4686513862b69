"""Drive the native kernels with windows, sizes, values and attributes drawn at random: ``python -m native.fuzz``.

Half of the calls are right ones, and the answer is judged like any file's: against the operator in float64, allowed
what torch's own answer is off. The other half are wrong in some way (ranks, lengths, attributes that are missing or
absurd), and may be refused, but must not end the process. Every call depends on the seed and its number alone; the
number of the last one is written to --progress, so that a crash can be repeated with --only.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from onnx import TensorProto, helper

from ops.samples import samples
from ops.test_operators import as_tuple, one_operator
from poolexport import stress
from poolexport.runtime import plain_session, register_kernels, session
from poolexport.tolerance import judge
from poolexport_ops import DOMAIN, Window, operators

DTYPES = (np.float32, np.float64, np.float16)
TYPES = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.INT64)
#: Inputs that one model is tried on.
SHAPES = 8
#: Lengths and attributes no operator was made for; those between would only fill the memory.
ABSURD = (-(2**63), -7, -1, 0, 1, 2, 3, 5, 2**45, 2**62, 2**63 - 1)


def window_of(rng: np.random.Generator) -> tuple[Window, int]:
    """A window, and what the sides of maps for it stay below."""
    if rng.random() < 0.1:
        # Rows that kernels compute in pieces.
        kernel, stride, dilation = (int(rng.integers(1, most)) for most in (4, 4, 1500))
        return Window((kernel,), (stride,), (int(rng.integers(0, 4)),) * 2, (dilation,)), 5000
    rank = int(rng.integers(1, 4))
    draw = lambda low, high: tuple(int(n) for n in rng.integers(low, high, rank))  # noqa: E731
    kernel, dilations = draw(1, 6 if rank < 3 else 4), draw(1, 4)
    return Window(kernel, draw(1, 5), draw(0, 4) + draw(0, 4), dilations), 14


def right(name: str, rng: np.random.Generator, tally: Counter[str]) -> Iterator[str]:
    """Right calls of an operator; what is wrong with the answers."""
    (window, longest), dtype = window_of(rng), DTYPES[int(rng.integers(len(DTYPES)))]
    opened: dict[tuple[Any, ...], tuple[bytes, ort.InferenceSession]] = {}
    for _ in range(SHAPES):
        shape = (int(rng.integers(1, 4)), 3, *(int(n) for n in rng.integers(1, longest, window.rank)))
        pattern = str(rng.choice([*stress.REGIMES, *stress.EXTREMES]))
        x = torch.from_numpy(stress.draw(pattern, shape, dtype, int(rng.integers(2**31))))
        try:
            calls = list(samples(name, window, x))
        except (ValueError, RuntimeError, IndexError):
            continue
        for attributes, tensors in calls:
            operator = operators()[name]
            try:
                peers = as_tuple(operator(*tensors, **attributes))
                truths = as_tuple(operator(*(t.double() for t in tensors), **attributes))
            except (ValueError, RuntimeError, IndexError, NotImplementedError):
                continue
            key = (str(attributes), *(t.dtype for t in tensors), *(t.dim() for t in tensors))
            if key not in opened:
                content = one_operator(name, attributes, *tensors)
                opened[key] = content, session(content, threads=2, kernels=True)
            content, kernel = opened[key]
            feed = {f"x{i}": t.numpy() for i, t in enumerate(tensors)}
            tally["right"] += 1
            standard = [t.numpy() for t in truths]
            reason = differs(kernel, feed, [p.numpy() for p in peers], standard)
            if reason:
                # The body is what counts: where it answers no better, the kernel is not to blame.
                try:
                    bodies = plain_session(content, threads=1).run(None, feed)
                except Exception:
                    tally["refused by the body, too"] += 1
                    continue
                reason = differs(kernel, feed, bodies, standard)
                tally["as the body"] += not reason
            if reason:
                yield f"{name} {attributes} {dtype.__name__} {shape} {pattern}: {reason}"


def differs(
    opened: ort.InferenceSession, feed: dict[str, np.ndarray], peers: Sequence[np.ndarray], truths: Sequence[np.ndarray]
) -> str:
    """What is wrong with an answer, beside that of a peer; empty where nothing is."""
    try:
        answers = opened.run(None, feed)
    except Exception as error:
        return f"refused: {error}"
    cells = max((math.prod(x.shape[2:]) for x in feed.values() if x.ndim > 2), default=1)
    judged = (
        judge(a, p, t, factor=4.0, moved=added_otherwise(a, t, cells), sensitivity=1.0)
        for a, p, t in zip(answers, peers, truths, strict=True)
    )
    return next((one.reason for one in judged if not one.passed), "")


def added_otherwise(answer: np.ndarray, truth: np.ndarray, cells: int) -> np.ndarray | None:
    """The truth for another order of its sums; None where it has more digits than the answer.

    In float64 truth and peer are one computation, whose own rounding is seen nowhere else: the sum of 4055 equal
    products is off by 30 units as torch adds them, and by 20, to the other side, as the kernel does.
    """
    if answer.dtype != np.float64:
        return None
    with np.errstate(over="ignore"):
        return np.asarray(truth + truth * (cells / 16 * np.finfo(np.float64).eps))


def wrong(name: str, rng: np.random.Generator, tally: Counter[str]) -> Iterator[str]:
    """Calls with something absurd in them."""
    window, _ = window_of(rng)
    x = torch.from_numpy(stress.draw("normal", (2, 3, *[6] * window.rank)))
    try:
        calls = list(samples(name, window, x))
    except (ValueError, RuntimeError, IndexError):
        return
    attributes, tensors = calls[int(rng.integers(len(calls)))]
    attributes = {key: mutated(value, rng) for key, value in attributes.items() if rng.random() > 0.1}
    kinds = [TYPES[int(rng.integers(len(TYPES)))] if rng.random() < 0.2 else None for _ in tensors]
    first = helper.tensor_dtype_to_np_dtype(kinds[0] or TensorProto.FLOAT)
    arrays = [t.numpy() for t in tensors]
    arrays = [
        (a.astype(first) if a.dtype == np.float32 and kind is None else a.astype(helper.tensor_dtype_to_np_dtype(kind)))
        if kind is not None or a.dtype == np.float32
        else a
        for a, kind in zip(arrays, kinds)
    ]
    inputs = [
        helper.make_tensor_value_info(f"x{i}", helper.np_dtype_to_tensor_dtype(a.dtype), None)
        for i, a in enumerate(arrays)
    ]
    outputs = [helper.make_empty_tensor_value_info(f"y{i}") for i in range(len(operators()[name].outputs))]
    node = helper.make_node(name, [v.name for v in inputs], [v.name for v in outputs], domain=DOMAIN, **attributes)
    imports = [helper.make_opsetid("", 20), helper.make_opsetid(DOMAIN, 1)]
    model = helper.make_model(helper.make_graph([node], "g", inputs, outputs), opset_imports=imports, ir_version=10)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 2
    content = model.SerializeToString()
    register_kernels(options)
    tally["wrong"] += SHAPES
    try:
        opened = ort.InferenceSession(content, options)
    except Exception:
        tally["refused"] += SHAPES
        return
    for _ in range(SHAPES):
        feed = {f"x{i}": reshaped(a, rng) for i, a in enumerate(arrays)}
        try:
            opened.run(None, feed)
        except Exception:
            tally["refused"] += 1
    yield from ()


def mutated(value: Any, rng: np.random.Generator) -> Any:
    if rng.random() < 0.6:
        return value
    absurd = ABSURD[int(rng.integers(len(ABSURD)))]
    if isinstance(value, str):
        return str(rng.choice(["", "nan", "1e400", "-3", "mean", value + "x", "é"]))
    if isinstance(value, float):
        return float(rng.choice([np.nan, np.inf, -np.inf, 0.0, -1.0, 1e30]))
    if isinstance(value, int):
        return absurd
    entries = [entry if isinstance(entry, str | float) or rng.random() < 0.5 else absurd for entry in value]
    return entries[: int(rng.integers(0, len(entries) + 1))] or list(value) if rng.random() < 0.3 else entries


def reshaped(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The values in another shape: other lengths, none at all, or another rank."""
    shape = [int(rng.integers(0, 9)) if rng.random() < 0.4 else n for n in x.shape]
    if rng.random() < 0.2:
        shape = shape[:-1] if rng.random() < 0.5 else [*shape, 2]
    return np.resize(x, shape).astype(x.dtype)


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--operator", action="append", help="this one only; may be given several times")
    parser.add_argument("--only", type=int, help="one group of calls by its number")
    parser.add_argument("--progress", type=Path, help="a file for the number of the group in hand")
    given = parser.parse_args(words)
    names = given.operator or sorted(operators())
    tally: Counter[str] = Counter()
    faults: list[str] = []
    for number in itertools.count() if given.only is None else [given.only]:
        if tally["right"] + tally["wrong"] >= given.calls:
            break
        if given.progress is not None:
            given.progress.write_text(f"{number}\n")
        rng = np.random.default_rng([given.seed, number])
        name = names[number // 2 % len(names)]
        for fault in (right, wrong)[number % 2](name, rng, tally):
            faults.append(fault)
            print(f"group {number}: {fault}", flush=True)
    print(", ".join(f"{count} {word}" for word, count in sorted(tally.items())), f"- {len(faults)} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
