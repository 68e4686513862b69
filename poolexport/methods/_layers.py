"""What window layers share: their options, checked once, and their printed form."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from poolexport_ops import Window, require_rank
from poolexport_ops._window import Ints, is_half


class WindowLayer(nn.Module):
    """A layer that looks at windows; subclasses set ``rank``, the number of spatial axes."""

    rank: ClassVar[int]

    def __init__(
        self,
        kernel_size: Ints,
        stride: Ints | None = None,
        padding: Ints = 0,
        dilation: Ints = 1,
        ceil_mode: bool = False,
    ) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.stride = kernel_size if stride is None else stride
        self.padding = padding
        self.dilation = dilation
        self.ceil_mode = ceil_mode
        self.window = Window.from_torch(self.rank, kernel_size, stride, padding, dilation, ceil_mode)

    def require_rank(self, x: Tensor) -> None:
        require_rank(x, self.rank, type(self).__name__)

    def extra_repr(self) -> str:
        shown: dict[str, Any] = {"kernel_size": self.kernel_size, "stride": self.stride}
        optional = {"padding": (self.padding, 0), "dilation": (self.dilation, 1), "ceil_mode": (self.ceil_mode, False)}
        shown |= {name: value for name, (value, default) in optional.items() if value != default}
        shown |= self.extra_options()
        return ", ".join(f"{name}={value!r}" for name, value in shown.items())

    def extra_options(self) -> dict[str, Any]:
        """Further options to print."""
        return {}


def require_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise a ValueError unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def widened(x: Tensor) -> Tensor:
    """``x``, in float32 where it is half precision: a blend of several poolings is rounded once, at its end."""
    return x.float() if is_half(x.dtype) else x


def counted_pads(window: Window, count_include_pad: bool) -> list[int]:
    """The pads that count in an average's divisor: torch counts its own padding, never what hangs over beyond it."""
    return list(window.begin) * 2 if count_include_pad else [0] * len(window.pads)
