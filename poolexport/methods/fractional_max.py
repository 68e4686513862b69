"""Fractional max pooling (Graham): the largest cell of every region, where regions shrink a map by any factor.

torch          windows of k cells that start at trunc((i + u) a) - trunc(u a), a = (n - k) / (o - 1); the last at n - k
pseudorandom   borders c_i = ceil(a (i + u)) - 1, a = n / o; c_0 = 0, c_o = n
random         borders whose steps are floor(n / o), and one more for n mod o of them, shuffled
               regions c_i ... c_(i+1) - 1, and c_(i+1) as well where they overlap

training       regions drawn anew for every forward: in torch's form for every plane, in Graham's for the whole batch
inference      regions of the samples that the layer holds, or the mean over several such draws
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from poolexport.method import Case, Limit, Method, Paper
from poolexport.methods._layers import Layer, require_choice, widened
from poolexport.reference import Floats, PerAxis, exact_sum, per_axis
from poolexport_ops import per_axis as ints_per_axis
from poolexport_ops import require_rank
from poolexport_ops._fractional import PRECISIONS, REGIONS
from poolexport_ops._window import Ints
from poolexport_ops.fractional_max_pool import fractional_max_pool
from poolexport_ops.fractional_max_pool_with_indices import fractional_max_pool_with_indices

Ratios: TypeAlias = "float | Sequence[float]"

#: Keys per axis that shuffle the steps of random regions; longer outputs use them in turn.
KEYS = 256


class _FractionalMaxPool(Layer):
    """Largest cell of every region; the regions shrink an axis by any factor, and lie where samples put them.

    Training draws samples from torch's global generator: for torch's regions one per plane and axis, with the very
    numbers that ``torch.nn.FractionalMaxPool2d`` would draw; for Graham's one per axis, shared by batch and channels.
    ``eval()`` uses the samples that the layer holds. They start as 0.5, shared by all planes, and as a fixed shuffle
    for random regions; ``draw_samples`` replaces them by random ones. Samples stay in float64 whatever type the layer
    is converted to, so that its regions stay where they are.

    Args:
        kernel_size: cells per window, an int or one per spatial axis; None for Graham's regions, which need none.
        output_size: length of the output, an int or one per spatial axis.
        output_ratio: share of the input's length instead, in (0, 1), a number or one per spatial axis.
        return_indices: also return where each maximum was found, as int64 positions inside its (n, c) plane.
        _random_samples: samples in [0, 1) for inference and training alike, (N, C, axes) in torch's order: (width,
            height) or (depth, height, width). Rows that are all the same serve any batch, columns that are all the same
            any channel; else the batch is limited to N. With several draws, and for pseudo-random regions, (draws, 1,
            axes); for random regions (draws, keys, axes).
        regions: "torch", or Graham's "pseudorandom" or "random".
        overlapping: let Graham's regions share their border cell with the next.
        draws: how many fixed draws inference averages, as the paper averages passes of its network.
        precision: type in which torch's windows are placed: "float32" as in a float32 network, or "float64".

    Buffers:
        _random_samples: float64; a state dict without it, as that of torch's layer without samples, leaves it as it is.

    Shape:
        (N, C, *spatial) to (N, C, *output) with ``output = output_size`` or ``floor(n output_ratio)``.

    Raises:
        ValueError: an option out of range, options that exclude each other, an input of another rank, one that is too
            small for its regions, or a larger batch than there are samples for.

    Example:
        >>> import torch
        >>> from poolexport.nn import FractionalMaxPool2d
        >>> FractionalMaxPool2d(2, output_size=(1, 3)).eval()(torch.arange(10.0).reshape(1, 1, 2, 5))
        tensor([[[[6., 8., 9.]]]])

    Source:
        Graham, 2014, section 2; tensorflow/core/kernels/fractional_pool_common.cc for the ends of Graham's sequences;
        torch.nn.FractionalMaxPool2d and its kernel for torch's windows.
    """

    rank: ClassVar[int]
    _random_samples: Tensor

    def __init__(
        self,
        kernel_size: Ints | None = None,
        output_size: Ints | None = None,
        output_ratio: Ratios | None = None,
        return_indices: bool = False,
        _random_samples: ArrayLike | Tensor | None = None,
        regions: str = "torch",
        overlapping: bool = False,
        draws: int = 1,
        precision: str = "float32",
    ) -> None:
        super().__init__()
        require_choice("regions", regions, REGIONS)
        require_choice("precision", precision, PRECISIONS)
        if draws < 1:
            raise ValueError(f"draws must be a positive int, got {draws!r}")
        if (kernel_size is None) == (regions == "torch"):
            raise ValueError(f"kernel_size belongs to regions='torch', got {kernel_size!r} with regions={regions!r}")
        if overlapping and regions == "torch":
            raise ValueError("overlapping belongs to Graham's regions, not to regions='torch'")
        if return_indices and draws > 1:
            raise ValueError("return_indices needs draws=1: a mean of several maxima is found nowhere")
        if (output_size is None) == (output_ratio is None):
            raise ValueError(
                f"exactly one of output_size and output_ratio is needed, got {output_size!r}, {output_ratio!r}"
            )
        self.kernel_size = kernel_size
        self.output_size = output_size
        self.output_ratio = output_ratio
        self.return_indices = return_indices
        self.regions = regions
        self.overlapping = overlapping
        self.draws = draws
        self.precision = precision
        self.inference = "fixed" if _random_samples is not None else "one draw" if draws == 1 else "mean of draws"
        none = [0] * self.rank
        self.kernel_shape = none if kernel_size is None else _ints("kernel_size", kernel_size, self.rank)
        self.lengths = none if output_size is None else _ints("output_size", output_size, self.rank)
        self.ratios = _ratios(output_ratio, self.rank)
        samples = _default_samples(regions, draws, self.rank) if _random_samples is None else _random_samples
        self.register_buffer("_random_samples", self._checked(torch.as_tensor(samples, dtype=torch.float64)))

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        require_rank(x, self.rank, type(self).__name__)
        if self.training and self.inference != "fixed":
            return self._pool(x, self._drawn(x), per_plane=self.regions == "torch")
        if self.draws == 1:
            return self._pool(x, self._random_samples, per_plane=self.regions == "torch" and self._limited)
        wide = widened(x)
        terms = [self._pool(wide, self._random_samples[m : m + 1]) for m in range(self.draws)]
        return (torch.stack(terms).sum(0) / self.draws).to(x.dtype)

    def draw_samples(self, generator: torch.Generator | None = None) -> None:
        """Replace the samples that inference uses by random ones."""
        samples = torch.rand(self._random_samples.shape, dtype=torch.float64, generator=generator)
        self._random_samples.copy_(samples)

    def _pool(self, x: Tensor, samples: Tensor, per_plane: bool = False) -> Any:
        pool = fractional_max_pool_with_indices if self.return_indices else fractional_max_pool
        answer = pool(
            widened(x),
            samples,
            kernel_shape=list(self.kernel_shape),
            output_size=list(self.lengths),
            output_ratio=",".join(self.ratios),
            regions=self.regions,
            overlapping=int(self.overlapping),
            precision=self.precision,
            per_plane=int(per_plane),
        )
        if self.output_ratio is not None and torch.onnx.is_in_onnx_export():
            answer = tuple(map(_measured, answer)) if self.return_indices else _measured(answer)
        return (answer[0].to(x.dtype), answer[1]) if self.return_indices else answer.to(x.dtype)

    def _drawn(self, x: Tensor) -> Tensor:
        """Samples for one training pass."""
        if self.regions == "torch":
            return torch.rand(*x.shape[:2], self.rank, dtype=x.dtype, device=x.device).double()
        keys = max(x.shape[2:]) if self.regions == "random" else 1
        return torch.rand(1, keys, self.rank, dtype=torch.float64, device=x.device)

    @property
    def _limited(self) -> bool:
        """Whether planes have samples of their own."""
        return self._random_samples.shape[:2] != (1, 1)

    def _checked(self, samples: Tensor) -> Tensor:
        """The samples; rows, or columns, of planes that are all the same become one."""
        planes = self.regions == "torch" and self.draws == 1
        shape: tuple[int | str, ...] = ("N", "C", self.rank) if planes else (self.draws, 1, self.rank)
        if self.regions == "random":
            shape = (self.draws, "keys", self.rank)
        fits = samples.dim() == 3 and all(isinstance(m, str) or n == m for n, m in zip(samples.shape, shape))
        if not fits or not samples.numel():
            expected = ", ".join(map(str, shape))
            raise ValueError(f"_random_samples must have shape ({expected}), got {tuple(samples.shape)}")
        if not ((samples >= 0) & (samples < 1)).all():
            raise ValueError("_random_samples must lie in [0, 1)")
        if planes and (samples == samples[:1]).all():
            samples = samples[:1]
        if planes and (samples == samples[:, :1]).all():
            samples = samples[:, :1]
        return samples.clone()

    def _apply(self, fn: Any, recurse: bool = True) -> _FractionalMaxPool:
        samples = self._random_samples
        super()._apply(fn, recurse)
        # Half precision would move the regions.
        self._random_samples = samples.to(self._random_samples.device)
        return self

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        key = prefix + "_random_samples"
        samples = self._random_samples
        if key in state_dict:
            samples = self._checked(state_dict[key].to(samples))
            self._random_samples = torch.zeros_like(samples)
        super()._load_from_state_dict({**state_dict, key: samples}, prefix, *args)

    def extra_repr(self) -> str:
        shown: dict[str, Any] = {} if self.kernel_size is None else {"kernel_size": self.kernel_size}
        shown |= {"output_size": self.output_size} if self.output_size else {"output_ratio": self.output_ratio}
        optional = {
            "regions": "torch",
            "overlapping": False,
            "draws": 1,
            "precision": "float32",
            "return_indices": False,
        }
        shown |= {name: getattr(self, name) for name, default in optional.items() if getattr(self, name) != default}
        return ", ".join(f"{name}={value!r}" for name, value in shown.items())


def _measured(y: Tensor) -> Tensor:
    """``y``, whose lengths a graph reads off, where it would repeat their computation.

    torch writes the product of a length and a ratio in single precision, in which 90 * 0.7 is 63 and not the 62 of a
    double. The lengths of a slice of everything are new ones, which it takes from the slice.
    """
    for axis in range(2, y.dim()):
        y = torch.ops.aten.slice.Tensor(y, axis, 0, 2**62)
    return y


def _ints(name: str, value: Ints, rank: int) -> list[int]:
    return list(ints_per_axis(name, value, rank, minimum=1))


def _ratios(value: Ratios | None, rank: int) -> list[str]:
    """One ratio per axis, written with the digits of a double; "1.0" where there is none."""
    if value is None:
        return ["1.0"] * rank
    entries = [float(ratio) for ratio in (value if isinstance(value, Sequence) else [value] * rank)]
    if len(entries) != rank or not all(0 < ratio < 1 for ratio in entries):
        raise ValueError(f"output_ratio must be a number in (0, 1) or a tuple of {rank}, got {value!r}")
    return [repr(ratio) for ratio in entries]


def _default_samples(regions: str, draws: int, rank: int) -> Tensor:
    """Samples before any are drawn: 0.5, then the fractions of 0.5 + m sqrt(2, 3, 5); for a shuffle the keys of the
    minimal standard generator of Park and Miller, z <- 48271 z mod (2^31 - 1), seeded with the paper's number.
    """
    if regions != "random":
        roots = [math.sqrt(prime) for prime in (2, 3, 5)[:rank]]
        return torch.tensor([[[(0.5 + m * root) % 1 for root in roots]] for m in range(draws)], dtype=torch.float64)
    z, modulus, keys = 1412_6071, 2**31 - 1, []
    for _ in range(draws * KEYS * rank):
        z = 48271 * z % modulus
        keys.append(z / modulus)
    return torch.tensor(keys, dtype=torch.float64).reshape(draws, KEYS, rank)


class FractionalMaxPool2d(_FractionalMaxPool):
    rank = 2


class FractionalMaxPool3d(_FractionalMaxPool):
    rank = 3


def reference(
    x: ArrayLike,
    kernel_size: PerAxis | None = None,
    output_size: PerAxis | None = None,
    output_ratio: Ratios | None = None,
    return_indices: bool = False,
    _random_samples: ArrayLike | None = None,
    regions: str = "torch",
    overlapping: bool = False,
    draws: int = 1,
    precision: str = "float32",
) -> Floats | tuple[Floats, NDArray[np.int64]]:
    """Fractional max pooling with given samples, slowly, in float64: plane by plane, region by region.

    Borders are computed as their sources do, in the type `precision` names for torch's windows and in double for
    Graham's: sooner or later a product meets a whole number, and its rounding decides. NaN wins over every number,
    and of several draws makes the mean NaN, as infinities of both signs do. An index names the first maximum of a
    region, or the last NaN.
    """
    x = np.asarray(x, dtype=np.float64)
    axes = x.ndim - 2
    if output_size is not None:
        output = per_axis(output_size, axes)
    else:
        shares = output_ratio if isinstance(output_ratio, Sequence) else [output_ratio] * axes
        output = tuple(int(n * float(share or 0)) for n, share in zip(x.shape[2:], shares, strict=True))
    samples = _reference_samples(_random_samples, regions, draws, axes)
    kernel = per_axis(kernel_size, axes) if kernel_size is not None else (0,) * axes

    values = np.empty((draws, *x.shape[:2], *output))
    indices = np.empty(values.shape, dtype=np.int64)
    for draw, sample, channel in np.ndindex(*values.shape[:3]):
        along = []
        for axis, (n, o, k) in enumerate(zip(x.shape[2:], output, kernel, strict=True)):
            # torch has (width, height), but (depth, height, width).
            own = samples[..., axis if axes == 3 else 1 - axis]
            if regions == "torch":
                row = draw if draws > 1 else min(sample, len(own) - 1)
                u = own[row, min(channel, own.shape[1] - 1)]
                along.append(_torchs_windows(n, o, k, u, np.float32 if precision == "float32" else np.float64))
            else:
                borders = _pseudorandom(n, o, own[draw, 0]) if regions == "pseudorandom" else _random(n, o, own[draw])
                along.append([range(a, min(b + overlapping, n)) for a, b in itertools.pairwise(borders)])
        positions = np.arange(math.prod(x.shape[2:])).reshape(x.shape[2:])
        for index in np.ndindex(*output):
            region = np.ix_(*(cells[i] for cells, i in zip(along, index, strict=True)))
            winner = _winner(x[sample, channel][region].ravel())
            values[(draw, sample, channel, *index)] = x[sample, channel][region].ravel()[winner]
            indices[(draw, sample, channel, *index)] = positions[region].ravel()[winner]
    if draws > 1:
        return exact_sum(np.moveaxis(values, 0, -1), draws)
    return (values[0], indices[0]) if return_indices else values[0]


def _reference_samples(given: ArrayLike | None, regions: str, draws: int, axes: int) -> Floats:
    if given is not None:
        return np.asarray(given, dtype=np.float64)
    if regions == "random":
        states = [14126071]
        for _ in range(draws * 256 * axes):
            states.append(states[-1] * 48271 % 2147483647)
        return np.array(states[1:]).reshape(draws, 256, axes) / 2147483647
    draw = np.arange(draws, dtype=np.float64)[:, None, None]
    return np.modf(0.5 + draw * np.sqrt([2.0, 3.0, 5.0][:axes]))[0]


def _torchs_windows(n: int, o: int, k: int, sample: float, real: Any) -> list[range]:
    starts = [n - k]
    if o > 1:
        a, u = real(n - k) / real(o - 1), real(sample)
        starts = [int((real(i) + u) * a) - int(u * a) for i in range(o - 1)] + starts
    return [range(start, start + k) for start in starts]


def _pseudorandom(n: int, o: int, sample: float) -> list[int]:
    whole, rest = divmod(n, o)
    if rest == 0:
        return list(range(0, n + 1, whole))
    a = n / o
    u = sample * min((whole + 2) / a - 1, (n + 1 - whole) / a - (o - 1))
    return [0, *(math.ceil(a * (i + u)) - 1 for i in range(1, o)), n]


def _random(n: int, o: int, keys: Floats) -> list[int]:
    whole, rest = divmod(n, o)
    longer = sorted(range(o), key=lambda i: (keys[i % len(keys)], i))[:rest]
    borders = [0]
    for i in range(o):
        borders.append(borders[-1] + whole + (i in longer))
    return borders


def _winner(cells: Floats) -> int:
    nan = np.flatnonzero(np.isnan(cells))
    return int(nan[-1] if nan.size else np.argmax(cells))


#: Samples of four inputs and three channels; sixteenths, which every type holds exactly.
SAMPLES = [[[((5 * n + 3 * c + 7 * a) % 16) / 16 for a in range(2)] for c in range(3)] for n in range(4)]
SAMPLES_3D = [[[((5 * n + 3 * c + 7 * a) % 16) / 16 for a in range(3)] for c in range(2)] for n in range(3)]
SHUFFLE = [[[((11 * i + 5 * a) % 16) / 16 for a in range(2)] for i in range(3)]]

METHOD = Method(
    (FractionalMaxPool2d, FractionalMaxPool3d),
    summary="The largest cell of every region, where random regions shrink a map by any factor.",
    paper=Paper("Fractional Max-Pooling", "Graham", 2014, "arXiv:1412.6071"),
    reference=reference,
    training="regions drawn anew for every forward",
    inference="regions of the samples that the layer holds",
    operators=(fractional_max_pool, fractional_max_pool_with_indices),
    random=True,
    cases=(
        Case("ratio", {"kernel_size": 2, "output_ratio": 0.7}),
        Case("size", {"kernel_size": 3, "output_size": (5, 6)}),
        Case("indices", {"kernel_size": 2, "output_size": 5, "return_indices": True}),
        Case("float64", {"kernel_size": (3, 2), "output_ratio": (0.5, 0.6), "precision": "float64"}),
        Case("per-plane", {"kernel_size": 2, "output_size": (5, 6), "_random_samples": SAMPLES}),
        Case(
            "per-plane-indices",
            {"kernel_size": 3, "output_ratio": 0.5, "_random_samples": SAMPLES, "return_indices": True},
        ),
        Case("per-channel", {"kernel_size": 2, "output_size": 5, "_random_samples": SAMPLES[:1] * 2}),
        Case("one-output", {"kernel_size": 3, "output_size": 1, "_random_samples": [[[0.25, 0.5]]]}),
        Case("draws", {"kernel_size": 2, "output_ratio": 0.6, "draws": 4}),
        Case("loaded", {"kernel_size": 2, "output_size": 6}, state={"_random_samples": SAMPLES}),
        Case("pseudorandom", {"regions": "pseudorandom", "output_ratio": 0.7}),
        Case("pseudorandom-overlapping", {"regions": "pseudorandom", "overlapping": True, "output_size": (4, 7)}),
        Case("pseudorandom-indices", {"regions": "pseudorandom", "output_ratio": 0.55, "return_indices": True}),
        Case("pseudorandom-draws", {"regions": "pseudorandom", "output_ratio": 0.6, "draws": 3}),
        Case("random", {"regions": "random", "output_ratio": 0.7}),
        Case("random-overlapping", {"regions": "random", "overlapping": True, "output_size": 4}),
        Case("random-few-keys", {"regions": "random", "output_size": 7, "_random_samples": SHUFFLE}),
        Case("random-draws", {"regions": "random", "overlapping": True, "output_ratio": 0.6, "draws": 3}),
        Case("3d", {"kernel_size": 2, "output_ratio": 0.6}, shape=(1, 2, 5, 6, 7)),
        Case(
            "3d-per-plane",
            {"kernel_size": 2, "output_size": (3, 4, 5), "return_indices": True, "_random_samples": SAMPLES_3D},
            shape=(1, 2, 5, 6, 7),
        ),
        Case("3d-pseudorandom", {"regions": "pseudorandom", "output_ratio": (0.5, 0.6, 0.7)}, shape=(1, 2, 5, 6, 7)),
    ),
    # Many options exclude each other; values that go with most of the others are repeated.
    space={
        "kernel_size": (None, 1, 2),
        "output_size": (None, None, None, None, None, None, 1, 2),
        "output_ratio": (0.5, 0.6, 0.7, 0.8, 0.9, None),
        "return_indices": (False, False, True),
        "regions": ("torch", "torch", "pseudorandom", "random"),
        "overlapping": (False, False, False, True),
        "draws": (1, 1, 1, 1, 3),
        "precision": ("float32", "float64"),
    },
    limits=(
        Limit({"kernel_size": 0, "output_size": 2}, ValueError, "kernel_size must be a positive int"),
        Limit({"kernel_size": 2, "output_size": 0}, ValueError, "output_size must be a positive int"),
        Limit({"kernel_size": 2, "output_ratio": 1.0}, ValueError, "output_ratio must be a number in (0, 1)"),
        Limit({"kernel_size": 2}, ValueError, "exactly one of output_size and output_ratio"),
        Limit({"kernel_size": 2, "output_size": 3, "output_ratio": 0.5}, ValueError, "exactly one of output_size"),
        Limit({"output_size": 3}, ValueError, "kernel_size belongs to regions='torch'"),
        Limit({"kernel_size": 2, "output_size": 3, "regions": "random"}, ValueError, "kernel_size belongs to"),
        Limit({"kernel_size": 2, "output_size": 3, "overlapping": True}, ValueError, "overlapping belongs to Graham's"),
        Limit({"regions": "graham", "output_size": 3}, ValueError, "regions must be one of"),
        Limit({"kernel_size": 2, "output_size": 3, "precision": "float16"}, ValueError, "precision must be one of"),
        Limit({"kernel_size": 2, "output_size": 3, "draws": 0}, ValueError, "draws must be a positive int"),
        Limit(
            {"kernel_size": 2, "output_size": 3, "draws": 2, "return_indices": True}, ValueError, "a mean of several"
        ),
        Limit(
            {"kernel_size": 2, "output_size": 3, "_random_samples": [[0.5, 0.5]]},
            ValueError,
            "must have shape (N, C, 2)",
        ),
        Limit({"kernel_size": 2, "output_size": 3, "_random_samples": [[[0.5, 1.0]]]}, ValueError, "lie in [0, 1)"),
        Limit(
            {"kernel_size": 2, "output_size": 4},
            ValueError,
            "the regions do not fit",
            shape=(1, 1, 4, 9),
            file="numbers",
        ),
        Limit(
            {"regions": "random", "output_size": 5},
            ValueError,
            "the regions do not fit",
            shape=(1, 1, 9, 4),
            file="numbers",
        ),
        Limit(
            {"kernel_size": 1, "output_ratio": 0.1},
            ValueError,
            "the regions do not fit",
            shape=(1, 1, 9, 9),
            file="nothing",
        ),
        Limit(
            {"kernel_size": 2, "output_size": 3, "_random_samples": SAMPLES},
            ValueError,
            "there are samples for 4 inputs of 3 channels",
            shape=(5, 3, 9, 9),
        ),
    ),
    notes=(
        "torch's windows are neither Graham's disjoint nor his overlapping regions: they have k cells, and skip some "
        "where the ratio is above k.",
        "In eval mode torch's own layer still draws, unless it was given _random_samples.",
        "torch places its windows in the type of the input; precision names that type here, whatever the input's, "
        "so that a float64 copy of a network has the regions of the network.",
        "torch.nn.FractionalMaxPool3d also refuses an input that its windows just cover.",
        "The paper averages the predictions of several passes; draws averages the layer's answers instead.",
    ),
)
