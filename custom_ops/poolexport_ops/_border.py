"""What lies beyond the border of an input: its mirror image, its outermost cells, or zeros."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

#: "reflect" mirrors about the outermost cell without repeating it, "replicate" repeats that cell.
BORDERS = ("reflect", "replicate", "zero")


def continued(x: Tensor, begin: Sequence[int], end: Sequence[int], mode: str) -> Tensor:
    """``x`` with ``begin`` and ``end`` further cells on both sides of every spatial axis.

    Raises:
        ValueError: an axis is too short to be mirrored.

    Example:
        >>> continued(torch.tensor([[[1.0, 2.0, 3.0]]]), [2], [1], "reflect")
        tensor([[[3., 2., 1., 2., 3., 2.]]])
    """
    if not any((*begin, *end)):
        return x
    if mode == "reflect" and not torch.compiler.is_compiling():
        for axis, (n, *amounts) in enumerate(zip(x.shape[2:], begin, end)):
            if n <= max(amounts):
                raise ValueError(
                    f"the mirror image does not fit: {max(amounts)} cells beyond spatial axis {axis} need a length of "
                    f"at least {max(amounts) + 1}, got {n}; use a larger input or another padding"
                )
    pairs = [amount for pair in reversed(list(zip(begin, end))) for amount in pair]
    return F.pad(x, pairs, "constant" if mode == "zero" else mode)
