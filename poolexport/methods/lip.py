"""Local importance pooling: the mean of every window, weighted by what a small network finds important.

    y = sum(exp(g_i) x_i) / sum(exp(g_i))      over the real cells of the window, channel by channel
    g = 12 sigmoid(logits), which the network computes from the whole map

    simplified   logits = norm(conv3x3(x))
    bottleneck   logits = norm(conv1x1(h)) with h = relu(norm(conv3x3(relu(norm(conv1x1(x))))))
    norm(t) = scale (t - mean(t)) / sqrt(var(t) + 1e-5) + shift      over the map of one channel of one sample

The network is learned. Training and inference are the same: the norm keeps no statistics, so that inference too looks
at the mean and variance of the map at hand.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor, nn

from poolexport.method import Case, Limit, Method, Paper
from poolexport.methods._layers import Layer, WindowLayer, require_choice, widened
from poolexport.reference import Floats, PerAxis, each_window, exact_sum, output_shape
from poolexport_ops import Window, require_rank
from poolexport_ops._window import Ints
from poolexport_ops.global_average_pool import global_average_pool
from poolexport_ops.global_max_pool import global_max_pool
from poolexport_ops.softmax_pool import softmax_pool

#: Names of the simplified layer's convolution and norm in the authors' two files.
NAMINGS = {"resnet": ("conv", "bn"), "densenet": ("conv1", "bn1")}


def lip2d(x: Tensor, logit: Tensor, kernel: Ints = 3, stride: Ints | None = 2, padding: Ints = 1) -> Tensor:
    """Mean of every window, weighted by exp(logit); padded cells carry no weight.

    The largest logit of each window is subtracted first, so that no logit is too large or too small.

    Args:
        x: (N, C, H, W).
        logit: the logarithm of every cell's weight, (N, C, H, W), or (N, 1, H, W) for all channels alike.
        kernel: cells per window, an int or one per spatial axis.
        stride: cells between windows; the kernel where it is None.
        padding: cells added on both sides, at most half the kernel.

    Returns:
        (N, C, *output) with ``output = floor((n + 2 padding - kernel) / stride) + 1``.

    Raises:
        ValueError: an option out of range, logits of another shape, or an input of another rank or smaller than the
            window.

    Example:
        >>> import torch
        >>> x = torch.tensor([[[[0.0, 0.0], [0.0, 2.0]]]])
        >>> lip2d(x, 0 * x, 2, 2, 0), lip2d(x, 20 * x, 2, 2, 0)
        (tensor([[[[0.5000]]]]), tensor([[[[2.]]]]))
    """
    require_rank(x, 2, "lip2d")
    if not isinstance(logit, Tensor):
        raise ValueError(f"logit must be a tensor, got {type(logit).__name__}; a module must answer one tensor")
    if not torch.compiler.is_compiling() and logit.shape not in (x.shape, x[:, :1].shape):
        raise ValueError(f"logit must have the shape of x, {tuple(x.shape)}, or one channel; got {tuple(logit.shape)}")
    wide = widened(x)
    return softmax_pool(wide, logit.to(wide.dtype), **Window.from_torch(2, kernel, stride, padding).onnx()).to(x.dtype)


class LIPPool2d(WindowLayer):
    """Mean of every window, weighted by the exponential of what any module answers to the map.

    ``nn.Identity()`` gives SoftPool, a module that answers 0 the average without padding, one that answers 20 x nearly
    the maximum. The module should bound its answer where it is learned.

    Args:
        logit_module: from (N, C, H, W) to logits of the same shape, or of one channel for all channels alike; it is run
            in the type of the input.
        kernel_size: cells per window, an int or one per spatial axis.
        stride: cells between windows; the kernel size where it is None.
        padding: cells added on both sides, at most half the kernel; they carry no weight.

    Parameters:
        logit: the module.

    Shape:
        (N, C, H, W) to (N, C, *output) with ``output = floor((n + 2 padding - kernel_size) / stride) + 1``.

    Raises:
        ValueError: an option out of range, logits of another shape, or an input of another rank or smaller than the
            window.

    Example:
        >>> import torch
        >>> from poolexport.nn import LIPPool2d
        >>> LIPPool2d(torch.nn.Identity(), 2, 2, 0)(torch.tensor([[[[0.0, 0.0], [0.0, 2.0]]]])).round(decimals=3)
        tensor([[[[1.4220]]]])

    Source:
        Gao, Wang, Wu, ICCV 2019; official code sebgao/LIP, README.md.
    """

    rank = 2

    def __init__(
        self, logit_module: nn.Module, kernel_size: Ints = 3, stride: Ints | None = 2, padding: Ints = 1
    ) -> None:
        super().__init__(kernel_size, stride, padding)
        if not isinstance(logit_module, nn.Module):
            raise ValueError(f"logit_module must be a torch.nn.Module, got {logit_module!r}")
        self.logit = logit_module

    def forward(self, x: Tensor) -> Tensor:
        self.require_rank(x)
        self.window.require_fit(x.shape[2:])
        return self._pool(x, self.logit(x))

    def _pool(self, x: Tensor, logit: Tensor) -> Tensor:
        return lip2d(x, logit, self.kernel_size, self.stride, self.padding)


class SimplifiedLIP2d(LIPPool2d):
    """Mean of every window, weighted by the answers of one 3x3 convolution, an instance norm and a gate.

    The authors' ``SimplifiedLIP``. The convolution starts at zero: an untrained layer is the average without padding.

    Args:
        channels: channels of the input.
        kernel_size: cells per window, an int or one per spatial axis.
        stride: cells between windows; the kernel size where it is None.
        padding: cells added on both sides, at most half the kernel; they carry no weight.
        coeff: upper end of the logits, above 0; a cell weighs up to exp(coeff) times as much as another.
        naming: whose names the parameters have, "resnet" or "densenet", after the authors' two files.

    Parameters:
        logit.conv.weight: (channels, channels, 3, 3), zeros at first; ``logit.conv1.weight`` with "densenet".
        logit.bn.weight, logit.bn.bias: scale and shift of the norm, (channels,); ``logit.bn1.*`` with "densenet".

    Shape:
        (N, C, H, W) to (N, C, *output) with ``output = floor((n + 2 padding - kernel_size) / stride) + 1``.

    Raises:
        ValueError: an option out of range, or an input of another rank, another number of channels, a single cell, or
            smaller than the window.

    Example:
        >>> import torch
        >>> from poolexport.nn import SimplifiedLIP2d
        >>> layer = SimplifiedLIP2d(1, kernel_size=2, padding=0)
        >>> _ = torch.nn.init.dirac_(layer.logit.conv.weight)  # bright cells are important
        >>> layer(torch.tensor([[[[0.0, 0.0], [0.0, 2.0]]]])).detach().round(decimals=3)
        tensor([[[[1.9830]]]])

    Source:
        Gao, Wang, Wu, ICCV 2019, fig. 4 (d), "projection"; official code sebgao/LIP, imagenet/lip_resnet.py and
        lip_densenet.py, whose states load.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: Ints = 3,
        stride: Ints | None = 2,
        padding: Ints = 1,
        coeff: float = 12.0,
        naming: str = "resnet",
    ) -> None:
        require_choice("naming", naming, tuple(NAMINGS))
        conv, norm = NAMINGS[naming]
        parts = {conv: _Conv(channels, channels, 3), norm: _Norm(channels), "gate": _SoftGate(coeff)}
        super().__init__(nn.Sequential(OrderedDict(parts)), kernel_size, stride, padding)
        self.init_layer()

    def init_layer(self) -> None:
        """Make the layer an average; the authors' ResNet calls this after it has drawn all weights."""
        _start_at_zero(self.logit)


class BottleneckLIP2d(LIPPool2d):
    """Mean of every window, weighted by the answers of a bottleneck: 1x1, 3x3 and 1x1 convolutions and a gate.

    The ``BottleneckLIP`` of the authors' DenseNet file; that of their ResNet file is SharedBottleneckLIP2d. The last
    convolution starts at zero: an untrained layer is the average without padding.

    Args:
        channels: channels of the input.
        bottleneck: channels inside the network.
        kernel_size: cells per window, an int or one per spatial axis.
        stride: cells between windows; the kernel size where it is None.
        padding: cells added on both sides, at most half the kernel; they carry no weight.
        coeff: upper end of the logits, above 0.

    Parameters:
        logit.conv1.weight, logit.conv2.weight, logit.conv3.weight: (bottleneck, channels, 1, 1),
            (bottleneck, bottleneck, 3, 3) and (channels, bottleneck, 1, 1); the last starts at zero, the others as
            torch's convolutions do.
        logit.bn1, logit.bn2, logit.bn3: ``weight`` and ``bias``, scale and shift of the norms.

    Shape:
        (N, C, H, W) to (N, C, *output) with ``output = floor((n + 2 padding - kernel_size) / stride) + 1``.

    Raises:
        ValueError: an option out of range, or an input of another rank, another number of channels, a single cell, or
            smaller than the window.

    Example:
        >>> import torch
        >>> from poolexport.nn import BottleneckLIP2d
        >>> BottleneckLIP2d(1)(torch.tensor([[[[0.0, 0.0], [0.0, 2.0]]]])).detach()
        tensor([[[[0.5000]]]])

    Source:
        Gao, Wang, Wu, ICCV 2019, fig. 4 (e), "bottleneck"; official code sebgao/LIP, imagenet/lip_densenet.py, whose
        state loads.
    """

    def __init__(
        self,
        channels: int,
        bottleneck: int = 128,
        kernel_size: Ints = 2,
        stride: Ints | None = 2,
        padding: Ints = 0,
        coeff: float = 12.0,
    ) -> None:
        last = {"conv3": _Conv(bottleneck, channels, 1), "bn3": _Norm(channels), "gate": _SoftGate(coeff)}
        parts = {**_hidden_parts(channels, bottleneck), **last}
        super().__init__(nn.Sequential(OrderedDict(parts)), kernel_size, stride, padding)
        self.init_layer()

    def init_layer(self) -> None:
        """Make the layer an average; the authors' ResNet calls this after it has drawn all weights."""
        _start_at_zero(self.logit)


class BottleneckShared2d(Layer):
    """The first two thirds of a bottleneck, whose answer several SharedBottleneckLIP2d turn into logits of their own.

    The authors' ``BottleneckShared``. It does not pool. A block of their ResNet runs it once, on the block's input, for
    the poolings of its main and its skip branch.

    Args:
        channels: channels of the input.
        bottleneck: channels of the answer.

    Parameters:
        logit.conv1.weight, logit.conv2.weight: (bottleneck, channels, 1, 1) and (bottleneck, bottleneck, 3, 3); they
            start as torch's convolutions do.
        logit.bn1, logit.bn2: ``weight`` and ``bias``, scale and shift of the norms, (bottleneck,).

    Shape:
        (N, C, H, W) to (N, bottleneck, H, W).

    Raises:
        ValueError: an option out of range, or an input of another rank, another number of channels, or a single cell.

    Example:
        >>> import torch
        >>> from poolexport.nn import BottleneckShared2d
        >>> BottleneckShared2d(64)(torch.rand(1, 64, 14, 9)).shape
        torch.Size([1, 128, 14, 9])

    Source:
        Gao, Wang, Wu, ICCV 2019, fig. 4 (b) and (e); official code sebgao/LIP, imagenet/lip_resnet.py, whose
        state loads.
    """

    rank: ClassVar[int] = 2

    def __init__(self, channels: int, bottleneck: int = 128) -> None:
        super().__init__()
        self.logit = nn.Sequential(OrderedDict(_hidden_parts(channels, bottleneck)))

    def forward(self, x: Tensor) -> Tensor:
        require_rank(x, self.rank, type(self).__name__)
        return cast(Tensor, self.logit(x)).to(x.dtype)


class SharedBottleneckLIP2d(WindowLayer):
    """Mean of every window, weighted by logits from a bottleneck that several poolings share.

    The ``BottleneckLIP`` of the authors' ResNet file with ``own_shared=False``: it holds the last third of the network
    alone, and is called as ``layer(x, shared)`` or ``layer.forward_with_shared(x, shared)`` with the answer of a
    BottleneckShared2d to the block's input, which may have other channels than ``x``. By default it has a
    BottleneckShared2d of its own and runs it on ``x`` where ``shared`` is not given.

    Args:
        channels: channels of the input.
        bottleneck: channels of the shared answer.
        own_shared: hold a BottleneckShared2d; False for the authors' state.
        kernel_size: cells per window, an int or one per spatial axis.
        stride: cells between windows; the kernel size where it is None.
        padding: cells added on both sides, at most half the kernel; they carry no weight.
        coeff: upper end of the logits, above 0.

    Parameters:
        postprocessing.conv.weight: (channels, bottleneck, 1, 1), zeros at first, which make the layer the average
            without padding.
        postprocessing.bn.weight, postprocessing.bn.bias: scale and shift of the norm, (channels,).
        bottleneck_shared.logit: with ``own_shared``, the network of BottleneckShared2d.

    Shape:
        x (N, C, H, W) and shared (N, bottleneck, H, W) to (N, C, *output) with
        ``output = floor((n + 2 padding - kernel_size) / stride) + 1``.

    Raises:
        ValueError: an option out of range, no ``shared`` though the layer has none of its own, or an input of another
            rank, another number of channels, a single cell, or smaller than the window.

    Example:
        >>> import torch
        >>> from poolexport.nn import BottleneckShared2d, SharedBottleneckLIP2d
        >>> block_input = torch.rand(1, 64, 14, 9)
        >>> shared = BottleneckShared2d(64)(block_input)
        >>> skip = SharedBottleneckLIP2d(64, own_shared=False)(block_input, shared)
        >>> main = SharedBottleneckLIP2d(32, own_shared=False)(torch.rand(1, 32, 14, 9), shared)
        >>> skip.shape, main.shape
        (torch.Size([1, 64, 7, 5]), torch.Size([1, 32, 7, 5]))

    Source:
        Gao, Wang, Wu, ICCV 2019, fig. 4 (b) and (e); official code sebgao/LIP, imagenet/lip_resnet.py, whose
        state loads.
    """

    rank = 2

    def __init__(
        self,
        channels: int,
        bottleneck: int = 128,
        own_shared: bool = True,
        kernel_size: Ints = 3,
        stride: Ints | None = 2,
        padding: Ints = 1,
        coeff: float = 12.0,
    ) -> None:
        super().__init__(kernel_size, stride, padding)
        parts = {"conv": _Conv(bottleneck, channels, 1), "bn": _Norm(channels), "gate": _SoftGate(coeff)}
        self.bottleneck_shared = BottleneckShared2d(channels, bottleneck) if own_shared else None
        self.postprocessing = nn.Sequential(OrderedDict(parts))
        self.init_layer()

    def init_layer(self) -> None:
        """Make the layer an average; the authors' ResNet calls this after it has drawn all weights."""
        _start_at_zero(self.postprocessing)

    def forward(self, x: Tensor, shared: Tensor | None = None) -> Tensor:
        self.require_rank(x)
        self.window.require_fit(x.shape[2:])
        if shared is None:
            if self.bottleneck_shared is None:
                raise ValueError("the layer has no shared network of its own; call it as layer(x, shared)")
            # Not rounded to half precision between the two parts.
            shared = self.bottleneck_shared(widened(x))
        return lip2d(x, self.postprocessing(shared), self.kernel_size, self.stride, self.padding)

    def forward_with_shared(self, x: Tensor, shared: Tensor) -> Tensor:
        """The authors' name for ``layer(x, shared)``."""
        return cast(Tensor, self(x, shared))


class _Conv(nn.Conv2d):
    """A convolution up to a constant per map, which the norm after it takes away; half precision is made in float32.

    It keeps the size of the map and has no bias.
    """

    def __init__(self, channels: int, filters: int, size: int) -> None:
        for value in (channels, filters):
            if value < 1:
                raise ValueError(f"channels and bottleneck must be positive ints, got {value!r}")
        super().__init__(channels, filters, size, padding=size // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        require_rank(x, 2, "a logit network")
        if x.shape[1] != self.in_channels:
            raise ValueError(f"expected a map of {self.in_channels} channels, got one of shape {tuple(x.shape)}")
        wide = widened(x)
        if wide.dtype != widened(self.weight).dtype:
            raise ValueError(f"the layer holds {self.weight.dtype}, the map {x.dtype}; convert one of them")
        if self.kernel_size == (1, 1):
            # The norm magnifies what rounding leaves of a flat map three hundred times; the level need not be there.
            wide = wide - global_average_pool(wide, axes=[2, 3])
        return F.conv2d(wide, widened(self.weight), padding=self.padding)


class _Norm(nn.InstanceNorm2d):
    """Instance norm with scale and shift whose squares never leave the range of the type."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_compiling() and math.prod(x.shape[2:]) == 1:
            raise ValueError(f"a single cell cannot be normalised over its map, got an input of shape {tuple(x.shape)}")
        wide, weight, bias = (widened(t) for t in (x, self.weight, self.bias))
        d = wide - global_average_pool(wide, axes=[2, 3])
        # A tensor, because the exporter rounds Python numbers to float32.
        floor = d.new_tensor(math.sqrt(self.eps))
        size = torch.maximum(global_max_pool(d.abs(), axes=[2, 3]).detach(), floor)
        d = d / size
        root = torch.sqrt(global_average_pool(d.square(), axes=[2, 3]) + (floor / size).square())
        return d / root * weight.reshape(1, -1, 1, 1) + bias.reshape(1, -1, 1, 1)


class _SoftGate(Layer):
    """A sigmoid times ``coeff``."""

    def __init__(self, coeff: float) -> None:
        super().__init__()
        if not 0 < coeff < math.inf:
            raise ValueError(f"coeff must be a positive number, got {coeff!r}")
        self.coeff = coeff

    def forward(self, x: Tensor) -> Tensor:
        return self.coeff * torch.sigmoid(widened(x))

    def extra_repr(self) -> str:
        return f"coeff={self.coeff}"


def _hidden_parts(channels: int, bottleneck: int) -> dict[str, nn.Module]:
    """The hidden part of a bottleneck, under the authors' names."""
    return {
        "conv1": _Conv(channels, bottleneck, 1),
        "bn1": _Norm(bottleneck),
        "relu1": nn.ReLU(),
        "conv2": _Conv(bottleneck, bottleneck, 3),
        "bn2": _Norm(bottleneck),
        "relu2": nn.ReLU(),
    }


def _start_at_zero(network: nn.Module) -> None:
    """Set the last convolution to zero: all logits of a channel are equal."""
    *_, last = (part for part in network.children() if isinstance(part, _Conv))
    nn.init.zeros_(last.weight)


def reference(
    x: ArrayLike,
    channels: int | None = None,
    bottleneck: int | None = None,
    own_shared: bool = True,
    kernel_size: PerAxis | None = None,
    stride: PerAxis | None = 2,
    padding: PerAxis | None = None,
    coeff: float = 12.0,
    naming: str = "resnet",
    logit_module: Callable[[torch.Tensor], torch.Tensor] | None = None,
    **state: Floats,
) -> Floats:
    """Local importance pooling, slowly, in float64; the state is the layer's whole state in its order.

    Without a state the layer is untrained. NaN and infinities reach a whole sample through the norm, which answers NaN.
    """
    x = np.asarray(x, dtype=np.float64)
    if logit_module is not None:
        logits = logit_module(torch.from_numpy(x)).numpy()
    else:
        assert channels is not None
        untrained = (np.zeros((channels, channels, 3, 3)), np.ones(channels), np.zeros(channels))
        steps = tuple(state.values()) or untrained
        answer = hidden = x
        for i in range(0, len(steps), 3):
            answer = _normalised(_filtered(hidden, steps[i]), steps[i + 1], steps[i + 2])
            hidden = np.where(answer < 0, 0.0, answer)
        if len(steps) == 6:  # the shared part alone, which does not pool
            return hidden
        with np.errstate(over="ignore"):
            logits = coeff / (1.0 + np.exp(-answer))
    chain = "logit.conv3.weight" in state
    padding = (0 if chain else 1) if padding is None else padding
    window = (kernel_size or (2 if chain else 3), stride, padding)
    y = np.empty(x.shape[:2] + output_shape(x.shape[2:], *window))
    for (index, cells, _, _), (_, scores, _, _) in zip(each_window(x, *window), each_window(logits, *window)):
        with np.errstate(invalid="ignore"):
            weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        # Never 0 * -inf; NaN weights must stay, so compare with 0 and not with what is above it.
        y[(..., *index)] = exact_sum(weights * np.where(weights == 0, 0.0, cells)) / exact_sum(weights)
    return y


def _filtered(x: Floats, filters: Floats) -> Floats:
    """Each filter's answer at every place of the map, cell by cell, with zeros around it."""
    size, (height, width) = filters.shape[2], x.shape[2:]
    around = np.pad(x, ((0, 0), (0, 0), *[(size // 2, size // 2)] * 2))
    y = np.empty((x.shape[0], filters.shape[0], height, width))
    for f, i, j in np.ndindex(*y.shape[1:]):
        seen = around[:, :, i : i + size, j : j + size] * filters[f]
        y[:, f, i, j] = exact_sum(seen.reshape(x.shape[0], filters[f].size))
    return y


def _normalised(x: Floats, scale: Floats, shift: Floats) -> Floats:
    """Every plane less its mean, over the root of its variance plus 1e-5, scaled and shifted."""
    y = np.empty_like(x)
    for n, c in np.ndindex(*x.shape[:2]):
        cells = x[n, c].ravel()
        centred = cells - exact_sum(cells, cells.size)
        y[n, c] = (centred / np.sqrt(exact_sum(centred**2, cells.size) + 1e-5)).reshape(x.shape[2:])
        y[n, c] = y[n, c] * scale[c] + shift[c]
    return y


def _trained(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Numbers that training may leave in convolutions and norms, by the names of the two."""
    rng = np.random.default_rng(1)
    state: dict[str, Any] = {}
    for names, shape in shapes.items():
        conv, norm = names.split()
        state[f"{conv}.weight"] = rng.standard_normal(shape) / math.sqrt(math.prod(shape[1:]))
        state[f"{norm}.weight"] = rng.uniform(0.5, 1.5, shape[0])
        state[f"{norm}.bias"] = 0.5 * rng.standard_normal(shape[0])
    return state


_SIMPLIFIED = {"logit.conv logit.bn": (3, 3, 3, 3)}
_BOTTLENECK = {
    "logit.conv1 logit.bn1": (4, 3, 1, 1),
    "logit.conv2 logit.bn2": (4, 4, 3, 3),
    "logit.conv3 logit.bn3": (3, 4, 1, 1),
}
_SHARED = {
    "bottleneck_shared.logit.conv1 bottleneck_shared.logit.bn1": (4, 3, 1, 1),
    "bottleneck_shared.logit.conv2 bottleneck_shared.logit.bn2": (4, 4, 3, 3),
    "postprocessing.conv postprocessing.bn": (3, 4, 1, 1),
}

METHOD = Method(
    (SimplifiedLIP2d,),
    summary="The mean of every window, weighted by what a small network finds important.",
    paper=Paper("LIP: Local Importance-based Pooling", "Gao, Wang, Wu", 2019, "arXiv:1908.04156"),
    reference=reference,
    training="importance-weighted mean",
    inference="importance-weighted mean",
    operators=(global_average_pool, global_max_pool, softmax_pool),
    variants=(BottleneckLIP2d, SharedBottleneckLIP2d, BottleneckShared2d, LIPPool2d),
    graph_dtypes=("float32", "float16"),
    dynamic_channels=False,
    cases=(
        Case("simplified", {"channels": 3}, state=_trained(_SIMPLIFIED)),
        Case("untrained", {"channels": 3}, shape=(1, 3, 8, 10)),
        Case(
            "densenet-stem",
            {"channels": 3, "naming": "densenet", "coeff": 4.0},
            state=_trained({"logit.conv1 logit.bn1": (3, 3, 3, 3)}),
        ),
        Case(
            "window",
            {"channels": 3, "kernel_size": (3, 2), "stride": (1, 3), "padding": (1, 0)},
            state=_trained(_SIMPLIFIED),
        ),
        Case("bottleneck", {"channels": 3, "bottleneck": 4}, state=_trained(_BOTTLENECK), layer=BottleneckLIP2d),
        Case(
            "bottleneck-window",
            {"channels": 3, "bottleneck": 4, "kernel_size": 3, "stride": None, "padding": 1, "coeff": 2.5},
            shape=(1, 3, 8, 10),
            state=_trained(_BOTTLENECK),
            layer=BottleneckLIP2d,
        ),
        Case("resnet", {"channels": 3, "bottleneck": 4}, state=_trained(_SHARED), layer=SharedBottleneckLIP2d),
        Case(
            "resnet-window",
            {
                "channels": 3,
                "bottleneck": 4,
                "own_shared": True,
                "kernel_size": 2,
                "stride": 1,
                "padding": 0,
                "coeff": 20.0,
            },
            state=_trained(_SHARED),
            layer=SharedBottleneckLIP2d,
        ),
        Case(
            "shared",
            {"channels": 3, "bottleneck": 4},
            state=_trained({name: shape for name, shape in _BOTTLENECK.items() if "conv3" not in name}),
            layer=BottleneckShared2d,
        ),
        Case("softpool", {"logit_module": nn.Identity()}, layer=LIPPool2d),
        Case(
            "softpool-window",
            {"logit_module": nn.Identity(), "kernel_size": 2, "stride": None, "padding": 0},
            layer=LIPPool2d,
        ),
    ),
    space={
        "channels": (3,),
        "kernel_size": (1, 2, 3, (3, 2)),
        "stride": (None, 1, 2, (2, 3)),
        "padding": (0, 0, 1),
        "coeff": (12.0, 1.0, 30.0),
        "naming": ("resnet", "densenet"),
    },
    limits=(
        Limit({"channels": 0}, ValueError, "channels and bottleneck must be positive ints"),
        Limit({"channels": 3, "kernel_size": 0}, ValueError, "kernel_size must be a positive int"),
        Limit({"channels": 3, "padding": 2}, ValueError, "padding must be at most half"),
        Limit({"channels": 3, "coeff": 0.0}, ValueError, "coeff must be a positive number"),
        Limit({"channels": 3, "naming": "vgg"}, ValueError, "naming must be one of"),
        Limit({"channels": 2}, ValueError, "expected a map of 2 channels", shape=(1, 3, 4, 4)),
        Limit({"channels": 3}, ValueError, "a single cell cannot be normalised", shape=(2, 3, 1, 1), file="numbers"),
        Limit({"channels": 3, "padding": 0}, ValueError, "the window does not fit", shape=(1, 3, 2, 9), file="nothing"),
        Limit({"channels": 3}, ValueError, "expects an input of shape", shape=(1, 3, 9)),
    ),
    notes=(
        "Inference normalises by the map at hand, as training does; there are no running statistics.",
        "Two layers of the authors have one name. Their DenseNet's BottleneckLIP is BottleneckLIP2d, with windows of 2 "
        "by 2; their ResNet's is SharedBottleneckLIP2d, with windows of 3 by 3 and a network that it may share.",
        "The authors' DenseNet never calls init_layer: its layers do not start as averages, as those of the ResNet do.",
        "The paper also reports bottlenecks of width 256, and wants windows no smaller than the stride; the code has "
        "128, and takes any window.",
        "The authors' CUDA kernel ignores the padding, answers floor(n / stride) lines and begins its windows half a "
        "kernel early. It agrees with their Python code, and with this layer, for an odd kernel, a padding of half of "
        "it and lengths that the stride divides; elsewhere it is a line short or shifted.",
        "The norm magnifies what rounding leaves of the 3x3 convolution where a map is nearly flat; on large maps the "
        "answer of float32 and float16 can be a few times farther from that of float64 than this project's bounds.",
        "The authors' code overflows in float16, where exp(12) is beyond the largest number, and for logits of one's "
        "own above 88; here every window is shifted by its largest logit.",
        "torch cannot normalise a map of one cell, and neither does the layer; an exported file answers the cell, "
        "which is what any weights would give.",
    ),
)
