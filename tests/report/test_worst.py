"""The worst case of answers of every rank and type."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from poolexport.pipeline.verify import Check
from poolexport.report.page import histogram
from poolexport.report.pictures import pictures
from poolexport.report.worst import Worst
from poolexport.tolerance import judge

INPUTS = [(), (3,), (2, 3), (1, 3, 9), (2, 3, 5, 6), (1, 2, 3, 4, 5), (2, 0, 3, 3)]
OUTPUTS = [(), (3,), (2, 3), (2, 3, 4), (2, 3, 70, 80), (1, 2, 3, 4, 5)]


def seen(given: tuple[int, ...], result: np.ndarray, truth: np.ndarray, watched: Worst) -> Worst:
    judgement = judge(result, truth, truth)
    watched(Check("normal", (given,), (judgement,)), [torch.zeros(given)], [result], [truth])
    return watched


@pytest.mark.parametrize("kind", ["float32", "int64", "bool", "NaN"])
@pytest.mark.parametrize("shape", OUTPUTS)
def test_every_value_is_counted_and_the_worst_is_found(shape: tuple[int, ...], kind: str):
    truth = np.asarray(np.random.default_rng(0).standard_normal(shape) * 10).astype(
        "float32" if kind == "NaN" else kind
    )
    result = np.asarray(~truth if kind == "bool" else truth + truth.dtype.type(1))
    if kind == "NaN":
        result.flat[-1] = np.nan
    for given in INPUTS:
        case = seen(given, result, truth, Worst()).case
        assert case is not None
        assert sum(case.histogram) + case.exact + case.strays == truth.size
        assert np.array_equal(case.got, float(result[case.index]), equal_nan=True)
        assert np.isnan(case.got) == (kind == "NaN")
        assert all(picture.uri.startswith("data:image/png;base64,") for picture in pictures(case))


def test_failures_come_first_then_errors_then_sizes():
    truth, watched = np.ones((2, 3), np.float32), Worst()
    seen((1,), truth * np.float32(1 + 1e-6), truth, watched)
    seen((2,), truth * np.float32(1.9), truth, watched)
    seen((3,), truth * np.float32(1 + 2e-6), truth, watched)
    assert watched.case is not None
    assert watched.case.check.shapes == ((2,),)
    larger = np.ones((2, 30), np.float32)
    seen((4,), larger * np.float32(1.8), larger, watched)
    assert watched.case.check.shapes == ((4,),)
    seen((5,), truth * np.float32(40), truth, watched)
    assert watched.case.check.shapes == ((5,),)


def test_an_empty_answer_is_no_case():
    assert seen((1,), np.ones((0, 3)), np.ones((0, 3)), Worst()).case is None


def test_bars_go_from_the_smallest_error_to_the_bound_at_least():
    bars = histogram({"edges": [0.1, 1.0, 10.0], "counts": [0, 0], "exact": 0, "strays": 2})
    assert [(bar.label, bar.count, bar.beyond) for bar in bars] == [(".1", 0, False), ("NaN, ∞", 2, True)]
