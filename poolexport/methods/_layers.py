"""What layers share: options of the type that a constructor says, windows, printed forms, and counted draws."""

from __future__ import annotations

import functools
import inspect
import numbers
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from poolexport_ops import Window, require_rank
from poolexport_ops._window import Ints, is_half

TINIEST, LARGEST = (float(bound) for bound in (np.finfo(np.float32).tiny, np.finfo(np.float32).max))
#: What an option may be, by its annotation, in words and as types; a bool is no number here.
KINDS: Mapping[str, tuple[str, tuple[type, ...]]] = {
    "bool": ("a bool", (bool, np.bool_)),
    "int": ("an int", (numbers.Integral,)),
    "float": ("a number", (numbers.Real,)),
    "str": ("a str", (str,)),
}


class Layer(nn.Module):
    """A pooling layer. An option that is not of the type that its constructor is annotated with is refused."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            cls.__init__ = _typed(cls.__init__)  # type: ignore[method-assign]


def _typed(constructor: Callable[..., None]) -> Callable[..., None]:
    """The constructor with its options checked, and numbers of numpy made those of Python."""
    signature = inspect.signature(constructor)

    @functools.wraps(constructor)
    def checked(*args: Any, **kwargs: Any) -> None:
        bound = signature.bind(*args, **kwargs)
        for name, value in bound.arguments.items():
            bound.arguments[name] = _of_kind(name, value, str(signature.parameters[name].annotation))
        constructor(*bound.args, **bound.kwargs)

    return checked


def _of_kind(name: str, value: Any, annotation: str) -> Any:
    kind, _, rest = annotation.partition(" | ")
    if kind not in KINDS or rest not in ("", "None") or (rest and value is None):
        return value
    words, types = KINDS[kind]
    if not isinstance(value, types) or (kind != "bool" and isinstance(value, (bool, np.bool_))):
        raise ValueError(f"{name} must be {words}{' or None' if rest else ''}, got {value!r}")
    return value.item() if isinstance(value, np.generic) else value


class WindowLayer(Layer):
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


class CountingLayer(WindowLayer):
    """A window layer that draws the maximum or the average in training, and counts what it drew.

    Subclasses set ``granularity``, and call ``begin_counting`` once it is known.
    """

    granularity: str
    max_count: Tensor
    average_count: Tensor

    def begin_counting(self) -> None:
        """Hold counts of nothing; those of channels begin with the number of channels."""
        for name in ("max_count", "average_count"):
            self.register_buffer(name, torch.zeros(0 if self.granularity == "channel" else 1, dtype=torch.int64))

    def draw(self, x: Tensor) -> Tensor:
        """True where the maximum is drawn, with equal odds; counts the draws."""
        self._require_counted_channels(x)
        output = (*x.shape[:2], *self.window.output_lengths(x.shape[2:]))
        ones = (1,) * self.rank
        shape = {"layer": (1, 1, *ones), "channel": (1, x.shape[1], *ones), "window": output}[self.granularity]
        drawn = torch.rand(shape, device=x.device) < 0.5
        maxima = drawn.flatten() if self.granularity == "channel" else drawn.sum().reshape(1)
        averages = ~drawn.flatten() if self.granularity == "channel" else (~drawn).sum().reshape(1)
        if not self.max_count.numel():
            self.max_count = self.max_count.new_zeros(maxima.shape)
            self.average_count = self.average_count.new_zeros(maxima.shape)
        self.max_count += maxima
        self.average_count += averages
        return drawn

    def require_counts(self, x: Tensor, option: str, instead: str) -> None:
        """Raise a ValueError where nothing was counted, or for another number of channels."""
        if not torch.compiler.is_compiling() and not (self.max_count.any() or self.average_count.any()):
            raise ValueError(
                f"{option} needs the counts of a training run, but nothing was counted; train the layer, load its "
                f"state, or choose {instead}"
            )
        self._require_counted_channels(x)

    def _require_counted_channels(self, x: Tensor) -> None:
        counted = self.max_count.numel()
        if self.granularity == "channel" and counted not in (0, x.shape[1]):
            raise ValueError(f"the layer has counted draws for {counted} channels, the input has {x.shape[1]}")

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        counts = [state_dict.get(prefix + name) for name in ("max_count", "average_count")]
        given = [count for count in counts if isinstance(count, Tensor)]
        single = self.granularity != "channel"
        if any(c.dim() != 1 or c.is_floating_point() or c.lt(0).any() or (single and len(c) != 1) for c in given):
            wanted = "one number" if single else "one number per channel"
            found = ", ".join(f"{count.dtype} of shape {tuple(count.shape)}" for count in given)
            error_msgs.append(f"{prefix}max_count and {prefix}average_count must hold {wanted}, whole, got {found}")
            return
        if len({len(count) for count in given}) > 1:
            error_msgs.append(f"{prefix}max_count and {prefix}average_count must be equally long")
            return
        if given:
            for name in ("max_count", "average_count"):
                setattr(self, name, torch.zeros_like(given[0], device=self.max_count.device))
        super()._load_from_state_dict(
            dict(state_dict), prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )


def require_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise a ValueError unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def require_positive(name: str, value: float) -> None:
    """Raise a ValueError unless ``value`` is above 0 and finite, as a number of single precision too."""
    if not TINIEST <= value <= LARGEST:
        raise ValueError(f"{name} must be a finite number above 0, in the range of float32, got {value!r}")


def widened(x: Tensor) -> Tensor:
    """``x``, in float32 where it is half precision: a blend of several poolings is rounded once, at its end."""
    return x.float() if is_half(x.dtype) else x


#: Types that sums of products can be made in.
COMPUTE_TYPES = ("float64", "float32")


def computed(x: Tensor, compute_dtype: str) -> Tensor:
    """``x`` in float64, or in float32 where that is asked for and ``x`` itself has no more digits."""
    return x.double() if compute_dtype == "float64" else widened(x)


def counted_pads(window: Window, count_include_pad: bool) -> list[int]:
    """The pads that count in an average's divisor: torch counts its own padding, never what hangs over beyond it."""
    return list(window.begin) * 2 if count_include_pad else [0] * len(window.pads)
