"""Where float32 takes other cells than float64 does, a few answers jump; what is left of them must hold."""

import numpy as np
import pytest

from poolexport.tolerance import judge

RNG = np.random.default_rng(0)
TRUTH = RNG.standard_normal((2, 3, 40))
#: torch, and a file that is right: each took another cell in a few places.
PEER, FILE = (np.where(RNG.random(TRUTH.shape) < 0.05, np.roll(TRUTH, 1, -1), TRUTH).astype(np.float32) for _ in "ab")


@pytest.mark.parametrize("result", [PEER, FILE, TRUTH.astype(np.float32)], ids=["torch", "file", "truth"])
def test_a_few_jumps_pass(result):
    assert judge(result, PEER, TRUTH).passed


@pytest.mark.parametrize(
    "result",
    [PEER[:, ::-1], np.zeros_like(PEER), PEER * np.float32(1.001), np.roll(PEER, 1, -1)],
    ids=["channels", "zeros", "scale", "cells"],
)
def test_jumps_elsewhere_excuse_nothing(result):
    judgement = judge(result, PEER, TRUTH)
    assert not judgement.passed
    assert "of the values" in judgement.reason


def test_answers_that_rounding_moves_everywhere_still_pass():
    peer, result, *others = (RNG.standard_normal(TRUTH.shape).astype(np.float32) for _ in range(10))
    assert judge(result, peer, TRUTH, others=others).passed


def test_a_number_where_the_truth_is_none_is_compared_with_torchs():
    truth, peer = np.array([1.0, np.nan, np.inf]), np.array([1.0, 0.25, 7.0], np.float32)
    for right in (peer, truth.astype(np.float32)):
        assert judge(right, peer, truth).passed
    assert not judge(np.array([1.0, 0.5, 7.0], np.float32), peer, truth).passed
    assert not judge(np.array([1.0, 0.25, 9.0], np.float32), peer, truth).passed
