"""Leaving things as they were found: random states, and the buffers of a model."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn


@contextmanager
def random_states_kept(seed: int | None = None) -> Iterator[None]:
    """Restore the random states of Python, numpy and torch on leaving; inside, start from ``seed``."""
    python, numpy_state, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    try:
        if seed is not None:
            random.seed(seed)
            np.random.seed(seed)  # noqa: NPY002
            torch.default_generator.manual_seed(seed)
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy_state)  # noqa: NPY002
        torch.set_rng_state(torch_state)


@contextmanager
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """Restore every parameter and buffer of ``model`` on leaving."""
    saved = {name: value.detach().clone() for name, value in model.state_dict().items() if torch.is_tensor(value)}
    try:
        yield
    finally:
        current = model.state_dict()
        with torch.no_grad():
            for name, value in saved.items():
                if name in current and not _same_bits(current[name], value):
                    current[name].copy_(value)


def _same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return (
        a.shape == b.shape and torch.equal(a.nan_to_num(), b.nan_to_num())
        if a.is_floating_point()
        else torch.equal(a, b)
    )


def tensors_of(output: object) -> list[torch.Tensor]:
    """The tensors of a model's output, in the order in which the exporter numbers them."""
    leaves, _ = torch.utils._pytree.tree_flatten(output)
    return [leaf for leaf in leaves if torch.is_tensor(leaf)]
