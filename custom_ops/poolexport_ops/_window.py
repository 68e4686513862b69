"""Window geometry: the one place where torch's words become ONNX's.

Every pooling window, ceil mode included, is a *floor-mode* window over an input with constant pads.
Along one axis let ``n`` be the length, ``p`` the padding, ``s`` the stride and ``e = d (k - 1) + 1`` the extent of the
kernel. torch's ceil mode keeps every window that starts at or before ``n + 2p - e + (s - 1)`` and strictly before
``n + p`` (measured from the first padded cell). A floor-mode pool whose end pad is ``q`` keeps the windows that start
at or before ``n + p + q - e``. Both are the same set for

    q = min(e - 1, p + s - 1)

which does not depend on ``n``: no shape arithmetic in the graph, and no use of the ``ceil_mode`` attribute, which
several runtimes compute wrongly.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

Ints: TypeAlias = "int | Sequence[int]"


@dataclass(frozen=True)
class Window:
    """A pooling window in ONNX's words, one entry per spatial axis.

    Args:
        kernel_shape: cells per axis.
        strides: steps between windows, in cells.
        pads: cells added before each axis, then cells added after each axis (ONNX order).
        dilations: distance between neighbouring cells of the window.
    """

    kernel_shape: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[int, ...]
    dilations: tuple[int, ...]

    @classmethod
    def of(
        cls,
        kernel_shape: Sequence[int],
        strides: Sequence[int],
        pads: Sequence[int],
        dilations: Sequence[int] | None = None,
    ) -> Window:
        """A window from the attributes of an operator call."""
        return cls(tuple(kernel_shape), tuple(strides), tuple(pads), tuple(dilations or [1] * len(kernel_shape)))

    @classmethod
    def from_torch(
        cls,
        rank: int,
        kernel_size: Ints,
        stride: Ints | None = None,
        padding: Ints = 0,
        dilation: Ints = 1,
        ceil_mode: bool = False,
    ) -> Window:
        """A window from torch's words; ``stride`` is the kernel size where it is ``None``.

        Raises:
            ValueError: a size that is not a positive int (padding: not negative), the wrong number of entries, or
                padding of more than half the extent of the kernel.
        """
        kernel = per_axis("kernel_size", kernel_size, rank, minimum=1)
        step = kernel if stride is None else per_axis("stride", stride, rank, minimum=1)
        begin = per_axis("padding", padding, rank, minimum=0)
        gap = per_axis("dilation", dilation, rank, minimum=1)
        extent = tuple(d * (k - 1) + 1 for k, d in zip(kernel, gap))
        for p, e in zip(begin, extent):
            if p > e // 2:
                raise ValueError(f"padding must be at most half of the kernel's extent ({e // 2}), got {p}")
        ceiling = tuple(min(e - 1, p + s - 1) for e, p, s in zip(extent, begin, step))
        return cls(kernel, step, begin + (ceiling if ceil_mode else begin), gap)

    @property
    def rank(self) -> int:
        return len(self.kernel_shape)

    @property
    def size(self) -> int:
        """Cells in one window."""
        return math.prod(self.kernel_shape)

    @property
    def begin(self) -> tuple[int, ...]:
        return self.pads[: self.rank]

    @property
    def end(self) -> tuple[int, ...]:
        return self.pads[self.rank :]

    @property
    def extent(self) -> tuple[int, ...]:
        return tuple(d * (k - 1) + 1 for k, d in zip(self.kernel_shape, self.dilations))

    @property
    def padded(self) -> bool:
        return any(self.pads)

    def onnx(self) -> dict[str, list[int]]:
        """The four window attributes of an operator call."""
        return {
            "kernel_shape": list(self.kernel_shape),
            "strides": list(self.strides),
            "pads": list(self.pads),
            "dilations": list(self.dilations),
        }

    def output_lengths(self, lengths: Sequence[int]) -> tuple[int, ...]:
        """Output length of every axis: ``floor((n + begin + end - extent) / stride) + 1``; sizes may be symbolic."""
        return tuple(
            (n + b + q - e) // s + 1 for n, b, q, e, s in zip(lengths, self.begin, self.end, self.extent, self.strides)
        )

    def require_fit(self, lengths: Sequence[int]) -> None:
        """Raise a ValueError where an axis is too short for a single window."""
        for axis, (n, b, q, e) in enumerate(zip(lengths, self.begin, self.end, self.extent)):
            if n < 1 or n + b + q < e:
                padded = f" ({n + b + q} with padding)" if b + q else ""
                raise ValueError(
                    f"the window does not fit: spatial axis {axis} has length {n}{padded}, and the kernel spans {e}; "
                    "use a smaller kernel or a larger input"
                )

    def pad(self, x: Tensor, value: float) -> Tensor:
        """``x`` with its pads filled with ``value``."""
        if not self.padded:
            return x
        pairs = [amount for b, q in reversed(list(zip(self.begin, self.end))) for amount in (b, q)]
        return F.pad(x, pairs, value=value)

    def cells(self, x: Tensor, pad_value: float) -> Tensor:
        """All windows of ``x``: shape (N, C, *output, size), the cells of a window in row-major order."""
        windows = self.pad(x, pad_value)
        for axis, (e, s) in enumerate(zip(self.extent, self.strides)):
            windows = windows.unfold(2 + axis, e, s)
        whole = [slice(None)] * (2 + self.rank)
        windows = windows[tuple(whole + [slice(None, None, d) for d in self.dilations])]
        return windows.flatten(-self.rank)

    def taps(self, axis: int) -> Iterator[tuple[int, int | None]]:
        """Start and end of the slice that holds tap 0, 1, ... of every window along an axis of the padded input.

        The end is ``None`` where the slice runs to the end of the axis.
        """
        extent, gap = self.extent[axis], self.dilations[axis]
        for tap in range(self.kernel_shape[axis]):
            start = tap * gap
            yield start, (start - extent + 1) or None


def per_axis(name: str, value: Ints, rank: int, minimum: int) -> tuple[int, ...]:
    """``value`` as one int per spatial axis; a ValueError says what was expected and what was found."""
    entries = tuple(value) if isinstance(value, Sequence) else (value,) * rank
    entries = tuple(int(v) if isinstance(v, Integral) and not isinstance(v, bool) else v for v in entries)
    kind = "a positive int" if minimum == 1 else "a non-negative int"
    if len(entries) != rank:
        raise ValueError(f"{name} must be {kind} or a tuple of {rank}, got {value!r}")
    if not all(isinstance(v, int) and not isinstance(v, bool) and v >= minimum for v in entries):
        raise ValueError(f"{name} must be {kind} or a tuple of {rank}, got {value!r}")
    return entries


def require_rank(x: Tensor, rank: int, who: str) -> None:
    """Raise a ValueError unless ``x`` is a tensor of floating-point numbers, (N, C, *spatial) with ``rank`` axes."""
    if not isinstance(x, Tensor):
        raise ValueError(f"{who} expects a tensor, got {type(x).__name__}")
    if not x.is_floating_point():
        raise ValueError(f"{who} expects floating-point numbers, got {x.dtype}; convert the input with x.float()")
    if not torch.compiler.is_compiling() and 0 in x.shape[2:]:
        raise ValueError(f"there is nothing to pool for {who} in an input of shape {tuple(x.shape)}")
    if x.dim() != rank + 2:
        axes = ", ".join("DHW"[-rank:])
        raise ValueError(
            f"{who} expects an input of shape (N, C, {axes}), got {x.dim()} axes with shape {tuple(x.shape)}"
        )


def is_half(dtype: torch.dtype) -> bool:
    return dtype in (torch.float16, torch.bfloat16)
