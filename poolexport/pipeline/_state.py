"""Random states, left as they were found; and the tensors of an answer."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


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


def tensors_of(output: object) -> list[torch.Tensor]:
    """The tensors of a model's output, in the order in which the exporter numbers them."""
    leaves, _ = torch.utils._pytree.tree_flatten(output)
    return [leaf for leaf in leaves if torch.is_tensor(leaf)]
