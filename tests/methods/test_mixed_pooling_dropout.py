"""Mixed-pooling dropout draws masks and choices as described, and its expectation is the mean of what it draws."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from poolexport.nn import MixedDropoutPool2d, MixedPool2d

DRAWS = 20_000
WINDOWS = ([1.0, 8.0, 2.0, 4.0], [-1.0, 2.0, -3.0, 5.0], [-1.0, -2.0, -4.0, -8.0])


def chi_square(counts: np.ndarray, probabilities: np.ndarray) -> float:
    """Distance of counts from what is expected, in standard deviations of the chi-square statistic."""
    expected = counts.sum() * probabilities
    assert (counts[expected == 0] == 0).all(), "something impossible was drawn"
    possible = expected > 0
    statistic = ((counts - expected)[possible] ** 2 / expected[possible]).sum()
    freedom = possible.sum() - 1
    return (statistic - freedom) / math.sqrt(2 * freedom)


def answers(window: list[float], keep: float, share: float = 0.5) -> dict[float, float]:
    """What the training rule can answer, with the probability of each: all masks, both choices."""
    odds: dict[float, float] = {}
    for mask in itertools.product((0, 1), repeat=len(window)):
        masked = [m * cell for m, cell in zip(mask, window, strict=True)]
        chance = keep ** sum(mask) * (1 - keep) ** (len(window) - sum(mask))
        for answer, choice in ((max(masked), share), (sum(masked) / len(window), 1 - share)):
            odds[answer] = odds.get(answer, 0.0) + chance * choice
    return odds


def drawn(window: list[float], keep: float, values: list[float]) -> np.ndarray:
    """How often training answers each of ``values`` for one 2 by 2 window."""
    torch.manual_seed(0)
    x = torch.tensor(window).reshape(1, 1, 2, 2).expand(DRAWS, 1, 2, 2)
    drawn = MixedDropoutPool2d(2, keep=keep, granularity="window").train()(x).flatten().numpy()
    counts = np.array([(drawn == np.float32(value)).sum() for value in values])
    assert counts.sum() == DRAWS
    return counts


@pytest.mark.parametrize("keep", [0.3, 0.8])
@pytest.mark.parametrize("window", WINDOWS)
def test_training_follows_masks_and_choices(window, keep):
    odds = answers(window, keep)
    assert chi_square(drawn(window, keep, list(odds)), np.array(list(odds.values()))) < 5


def test_a_wrong_probability_would_be_seen():
    values = list(answers(WINDOWS[0], 0.3))
    counts = drawn(WINDOWS[0], 0.3, values)
    assert chi_square(counts, np.array(list(answers(WINDOWS[0], 0.7).values()))) > 50
    assert chi_square(counts, np.array(list(answers(WINDOWS[0], 0.33).values()))) > 5
    assert chi_square(counts, np.array(list(answers(WINDOWS[0], 0.3, share=0.55).values()))) > 5


@pytest.mark.parametrize("granularity", ["layer", "channel", "window"])
def test_one_choice_covers_its_granularity_and_is_counted(granularity):
    torch.manual_seed(0)
    layer = MixedDropoutPool2d(2, keep=1.0, granularity=granularity).train()
    x = torch.tensor([[0.0, 0.0], [0.0, 4.0]]).repeat(2, 8, 3, 3)
    maxima = torch.stack([layer(x) for _ in range(1000)]) == 4.0
    assert abs(maxima.double().mean() - 0.5) < 0.03
    per_window = maxima.flatten(-2)
    assert bool((per_window == per_window[:, :1, :, :1]).all()) == (granularity != "window")
    assert bool((maxima == maxima[:, :1, :1, :1, :1]).all()) == (granularity == "layer")
    total = layer.max_count + layer.average_count
    assert total.tolist() == {"layer": [1000], "channel": [1000] * 8, "window": [1000 * 2 * 8 * 9]}[granularity]
    assert abs(layer.max_count.sum() / total.sum() - maxima.double().mean()) < 1e-6


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("keep", [0.0, 0.4, 1.0])
def test_expectation_is_the_mean_over_masks_and_choices(window, keep):
    x = torch.tensor(window, dtype=torch.float64).reshape(1, 1, 2, 2)
    counts = {"max_count": torch.tensor([3]), "average_count": torch.tensor([1])}
    for share, lam in (("half", 0.5), ("recorded", 0.75), ("majority", 1.0)):
        layer = MixedDropoutPool2d(2, keep=keep, share=share).eval()
        layer.load_state_dict(counts)
        mean = sum(answer * odds for answer, odds in answers(window, keep, lam).items())
        assert math.isclose(layer(x).item(), mean, rel_tol=1e-13, abs_tol=1e-15), share


@pytest.mark.parametrize("inference", ["expectation", "off"])
def test_keeping_everything_is_mixed_pooling(inference):
    options = {"kernel_size": 3, "stride": 2, "padding": 1}
    layer = MixedDropoutPool2d(**options, keep=1.0, inference=inference, share="majority").train()
    peer = MixedPool2d(**options).train()
    x = torch.randn(2, 8, 9, 11)
    for _ in range(5):
        layer(x)
    peer.load_state_dict(layer.state_dict())
    torch.testing.assert_close(layer.eval()(x), peer.eval()(x), rtol=0, atol=0)


def test_counts_survive_the_state_dict():
    torch.manual_seed(0)
    layer = MixedDropoutPool2d(2, share="recorded").train()
    x = torch.rand(1, 8, 4, 4)
    for _ in range(11):
        layer(x)
    fresh = MixedDropoutPool2d(2, share="recorded").eval()
    fresh.load_state_dict(layer.state_dict())
    assert torch.equal(fresh(x), layer.eval()(x))
    assert len(set(layer.max_count.tolist())) > 1
