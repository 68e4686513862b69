"""Attention pooling: one query per image looks at all locations and takes a weighted mean of their values.

    s_i = q . k_i / sqrt(d), a = softmax(s)      over the locations, for every head of d channels
    y = project(a_1 v_1 + ... + a_L v_L)         heads side by side; k_i and v_i are linear in location i

In CLIP the query comes from the mean of all locations, which is a location too, and a table of positions is added. The
variants ask with a learned vector (SigLIP), or with the mean, and take the locations themselves as values (SimPool).
Everything is made in float64 and rounded once, except the error function of "gelu", which onnxruntime has in float32
only. Training and inference are the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor, nn

from poolexport.method import Case, Limit, Method, Paper
from poolexport.methods._layers import Layer, require_choice, widened
from poolexport.reference import Floats, exact_sum
from poolexport_ops import per_axis, require_rank
from poolexport_ops._window import Ints

POSITIONS = ("interpolate", "fixed")
ACTIVATIONS = ("gelu", "gelu_tanh")
#: Channels of a head where the number of heads is not given; CLIP's residual networks all have 64.
HEAD = 64
#: Of the layer norms, as the authors of the variants have it.
EPS = 1e-6


class AttentionPool2d(Layer):
    """Multi-head attention from the mean of a map to its locations, as in CLIP's residual networks.

    CLIP's ``AttentionPool2d(spacial_dim, embed_dim, num_heads, output_dim)`` is ``AttentionPool2d(embed_dim,
    num_heads, spacial_dim, output_dim)`` here. At the size of its table the layer answers what CLIP answers; for other
    sizes the table is interpolated.

    Args:
        channels: channels of the input, CLIP's ``embed_dim``.
        num_heads: heads, a divisor of ``channels``; one per 64 channels by default, and at least one.
        size: rows and columns that the position table has entries for, an int or one per axis, CLIP's ``spacial_dim``;
            nothing where there is no table.
        output_dim: numbers in the answer; ``channels`` by default.
        positions: "interpolate" resizes the table to the map, bilinearly with half-pixel centres and clamped at the
            border; "fixed" takes maps of that size only; None has no table.
        keepdim: keep the spatial axes, with length 1.

    Parameters:
        positional_embedding: the entry of the mean, then those of the locations row by row,
            (rows columns + 1, channels).
        q_proj, k_proj, v_proj, c_proj: linear layers for query, keys, values and answer; the bias of the keys moves all
            scores alike and changes nothing.

    Shape:
        (N, C, H, W) to (N, D), or to (N, D, 1, 1) with ``keepdim``, where ``D = output_dim``.

    Raises:
        ValueError: an option out of range, an input of another rank, of another number of channels, without
            locations, or with "fixed" of another size.

    Example:
        >>> import torch
        >>> from poolexport.nn import AttentionPool2d
        >>> AttentionPool2d(128, num_heads=2, output_dim=10)(torch.rand(3, 128, 7, 9)).shape
        torch.Size([3, 10])

    Source:
        Radford et al., ICML 2021, section 2.4; code openai/CLIP, clip/model.py, whose state loads as it is.
    """

    rank: ClassVar[int] = 2

    def __init__(
        self,
        channels: int,
        num_heads: int | None = None,
        size: Ints = 7,
        output_dim: int | None = None,
        positions: str | None = "interpolate",
        keepdim: bool = False,
    ) -> None:
        super().__init__()
        self.channels = channels
        self.num_heads = _heads(channels, num_heads)
        self.size = per_axis("size", size, 2, 1)
        self.output_dim = channels if output_dim is None else output_dim
        _require_count("output_dim", self.output_dim)
        if positions is not None:
            require_choice("positions", positions, POSITIONS)
        self.positions = positions
        self.keepdim = keepdim
        entries = math.prod(self.size) + 1
        self.positional_embedding = None if positions is None else nn.Parameter(torch.empty(entries, channels))
        self.k_proj = nn.Linear(channels, channels)
        self.q_proj = nn.Linear(channels, channels)
        self.v_proj = nn.Linear(channels, channels)
        self.c_proj = nn.Linear(channels, self.output_dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start as CLIP does: everything but the biases normal, with a variance of 1 / channels."""
        drawn = [layer.weight for layer in (self.q_proj, self.k_proj, self.v_proj, self.c_proj)]
        drawn += [] if self.positional_embedding is None else [self.positional_embedding]
        for parameter in drawn:
            nn.init.normal_(parameter, std=self.channels**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        _require_map(x, self)
        cells = _locations(x)
        tokens = torch.cat([cells.mean(1, keepdim=True), cells], dim=1)
        if self.positional_embedding is not None:
            tokens = tokens + self._places(self.positional_embedding.double(), x.shape[2:])
        query = _linear(tokens[:, 0], self.q_proj)
        weights = _weights(query, tokens, self.k_proj.weight, self.k_proj.bias, self.num_heads)
        y = _linear(_attended(weights, tokens, self.v_proj.weight, self.v_proj.bias), self.c_proj)
        return _answer(y, x, self.keepdim)

    def _places(self, table: Tensor, lengths: Sequence[int]) -> Tensor:
        """The entries of the mean and of every location of a map of these lengths."""
        if self.positions == "fixed":
            if not torch.compiler.is_compiling() and tuple(lengths) != self.size:
                wanted, found = ("x".join(map(str, pair)) for pair in (self.size, lengths))
                raise ValueError(
                    f"the position table is for maps of {wanted}, got {found}; positions='interpolate' takes any size"
                )
            return table
        (rows, columns), (height, width) = self.size, lengths
        grid = _tents(height, rows, table) @ table[1:].reshape(rows, columns * self.channels)
        grid = _tents(width, columns, table) @ grid.reshape(height, columns, self.channels)
        return torch.cat([table[:1], grid.flatten(0, 1)])

    def extra_repr(self) -> str:
        options = f"output_dim={self.output_dim}, positions={self.positions!r}, keepdim={self.keepdim}"
        return f"channels={self.channels}, num_heads={self.num_heads}, size={self.size}, {options}"


class AttentionPoolLatent2d(Layer):
    """Multi-head attention from a learned vector to all locations, then a residual network: SigLIP's pooling head.

    Args:
        channels: channels of the input.
        num_heads: heads, a divisor of ``channels``; one per 64 channels by default, and at least one.
        mlp_ratio: hidden units of the network over ``channels``, rounded down.
        activation: "gelu", or its approximation "gelu_tanh".
        keepdim: keep the spatial axes, with length 1.

    Parameters:
        latent: the vector that asks, (1, 1, channels).
        q, kv, proj: linear layers for query, keys above values, and answer.
        norm, mlp.fc1, mlp.fc2: layer norm and linear layers of the network.

    Shape:
        (N, C, H, W) to (N, C), or to (N, C, 1, 1) with ``keepdim``.

    Raises:
        ValueError: an option out of range, or an input of another rank, of another number of channels, or without
            locations.

    Example:
        >>> import torch
        >>> from poolexport.nn import AttentionPoolLatent2d
        >>> AttentionPoolLatent2d(128)(torch.rand(3, 128, 7, 9)).shape
        torch.Size([3, 128])

    Source:
        Zhai, Kolesnikov, Houlsby, Beyer, Scaling Vision Transformers, CVPR 2022 (multihead attention pooling); Zhai,
        Mustafa, Kolesnikov, Beyer, SigLIP, ICCV 2023; timm AttentionPoolLatent with a layer norm and one latent, whose
        state loads as it is.
    """

    rank: ClassVar[int] = 2

    def __init__(
        self,
        channels: int,
        num_heads: int | None = None,
        mlp_ratio: float = 4.0,
        activation: str = "gelu",
        keepdim: bool = False,
    ) -> None:
        super().__init__()
        self.channels = channels
        self.num_heads = _heads(channels, num_heads)
        hidden = int(channels * mlp_ratio) if 0 < mlp_ratio < math.inf else 0
        if hidden < 1:
            raise ValueError(f"mlp_ratio must give at least one hidden unit, got {mlp_ratio!r} for {channels} channels")
        require_choice("activation", activation, ACTIVATIONS)
        self.mlp_ratio = mlp_ratio
        self.activation = activation
        self.keepdim = keepdim
        self.latent = nn.Parameter(torch.empty(1, 1, channels))
        nn.init.trunc_normal_(self.latent, std=channels**-0.5)
        self.q = nn.Linear(channels, channels)
        self.kv = nn.Linear(channels, 2 * channels)
        self.proj = nn.Linear(channels, channels)
        self.norm = nn.LayerNorm(channels, eps=EPS)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(channels, hidden), "fc2": nn.Linear(hidden, channels)})

    def forward(self, x: Tensor) -> Tensor:
        _require_map(x, self)
        tokens = _locations(x)
        query = _linear(self.latent[0].double(), self.q).expand(x.shape[0], -1)
        of_keys, of_values = slice(self.channels), slice(self.channels, None)
        weights = _weights(query, tokens, self.kv.weight[of_keys], self.kv.bias[of_keys], self.num_heads)
        y = _linear(_attended(weights, tokens, self.kv.weight[of_values], self.kv.bias[of_values]), self.proj)
        hidden = _linear(_normalised(y, self.norm), self.mlp["fc1"])
        y = y + _linear(self._activated(hidden, widened(x).dtype), self.mlp["fc2"])
        return _answer(y, x, self.keepdim)

    def _activated(self, hidden: Tensor, dtype: torch.dtype) -> Tensor:
        # Tensors, because the exporter rounds Python numbers to float32.
        if self.activation == "gelu_tanh":
            cubed = hidden + hidden.new_tensor(0.044715) * hidden * hidden * hidden
            bend = torch.tanh(hidden.new_tensor(math.sqrt(2 / math.pi)) * cubed)
        else:
            # In the type of the answer, because onnxruntime has erf in float32 only.
            bend = torch.erf((hidden / hidden.new_tensor(math.sqrt(2))).to(dtype)).double()
        return hidden * (0.5 + 0.5 * bend)

    def extra_repr(self) -> str:
        options = f"mlp_ratio={self.mlp_ratio}, activation={self.activation!r}, keepdim={self.keepdim}"
        return f"channels={self.channels}, num_heads={self.num_heads}, {options}"


class SimPool2d(Layer):
    """Attention from the mean of a map to its normalised locations, which are averaged as they are, or by powers.

    The query is projected from the plain mean, the keys from the locations after a layer norm over the channels; these
    normalised locations are the values, and nothing projects the answer. With ``gamma`` the values are averaged as
    ``(sum(a_i (v_i - min(v) + 1e-6)^gamma))^(1/gamma)``, where the minimum is over all locations and channels of the
    image.

    Args:
        channels: channels of the input.
        num_heads: heads, a divisor of ``channels``; the authors use one.
        qkv_bias: give the projections of query and keys a bias.
        gamma: the power, above 0; None for the plain mean. The authors use 2 in residual networks.
        use_beta: add one learned number to the answer; needs ``gamma``.
        keepdim: keep the spatial axes, with length 1.

    Parameters:
        norm_patches: the layer norm.
        wq, wk: linear layers for query and keys.
        beta: the number that is added, shape (1,); starts at 0.

    Shape:
        (N, C, H, W) to (N, C), or to (N, C, 1, 1) with ``keepdim``.

    Raises:
        ValueError: an option out of range or without effect, or an input of another rank, of another number of
            channels, or without locations.

    Example:
        >>> import torch
        >>> from poolexport.nn import SimPool2d
        >>> SimPool2d(2)(torch.tensor([[[[0.0, 2.0]], [[8.0, 4.0]]]])).round(decimals=3).detach()
        tensor([[-1.,  1.]])

    Source:
        Psomas, Kakogeorgiou, Karantzalos, Avrithis, ICCV 2023, section 3; code billpsomas/simpool (sp.py), whose
        state loads as it is.
    """

    rank: ClassVar[int] = 2

    def __init__(
        self,
        channels: int,
        num_heads: int = 1,
        qkv_bias: bool = False,
        gamma: float | None = None,
        use_beta: bool = False,
        keepdim: bool = False,
    ) -> None:
        super().__init__()
        if gamma is not None and not 0 < gamma < math.inf:
            raise ValueError(f"gamma must be a finite number above 0 or None, got {gamma!r}")
        if use_beta and gamma is None:
            raise ValueError("use_beta needs a gamma")
        self.channels = channels
        self.num_heads = _heads(channels, num_heads)
        self.gamma = gamma
        self.keepdim = keepdim
        self.norm_patches = nn.LayerNorm(channels, eps=EPS)
        self.wq = nn.Linear(channels, channels, bias=qkv_bias)
        self.wk = nn.Linear(channels, channels, bias=qkv_bias)
        self.beta = nn.Parameter(torch.zeros(1)) if use_beta else None

    def forward(self, x: Tensor) -> Tensor:
        _require_map(x, self)
        cells = _locations(x)
        tokens = _normalised(cells, self.norm_patches)
        query = _linear(cells.mean(1), self.wq)
        weights = _weights(query, tokens, self.wk.weight, self.wk.bias, self.num_heads)
        if self.gamma is None:
            y = _blended(weights, tokens)
        else:
            # Tensors, because the exporter rounds Python numbers to float32.
            raised = tokens - tokens.amin((1, 2), keepdim=True) + tokens.new_tensor(1e-6)
            y = _blended(weights, raised.pow(tokens.new_tensor(self.gamma))).pow(tokens.new_tensor(1 / self.gamma))
        return _answer(y if self.beta is None else y + self.beta.double(), x, self.keepdim)

    def extra_repr(self) -> str:
        options = f"gamma={self.gamma}, use_beta={self.beta is not None}, keepdim={self.keepdim}"
        return f"channels={self.channels}, num_heads={self.num_heads}, qkv_bias={self.wq.bias is not None}, {options}"


def _heads(channels: int, num_heads: int | None) -> int:
    """The number of heads, checked."""
    _require_count("channels", channels)
    heads = max(1, channels // HEAD) if num_heads is None else num_heads
    _require_count("num_heads", heads)
    if channels % heads:
        raise ValueError(f"num_heads must divide the number of channels, got {heads} for {channels} channels")
    return heads


def _require_count(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name} must be a positive int, got {value!r}")


def _require_map(x: Tensor, layer: AttentionPool2d | AttentionPoolLatent2d | SimPool2d) -> None:
    require_rank(x, 2, type(layer).__name__)
    if x.shape[1] != layer.channels:
        raise ValueError(f"the layer has {layer.channels} channels, the input has {x.shape[1]}")
    if not torch.compiler.is_compiling() and min(x.shape[2:]) < 1:
        raise ValueError(f"there is nothing to pool in an input of shape {tuple(x.shape)}")


def _locations(x: Tensor) -> Tensor:
    """(N, H W, C), row by row, in float64: a float32 score of 1e4 is off by a thousandth, and so is its weight."""
    return x.double().permute(0, 2, 3, 1).flatten(1, 2)


def _answer(y: Tensor, x: Tensor, keepdim: bool) -> Tensor:
    y = y.to(x.dtype)
    return y[:, :, None, None] if keepdim else y


def _linear(x: Tensor, layer: nn.Module) -> Tensor:
    assert isinstance(layer, nn.Linear)
    return F.linear(x, layer.weight.double(), None if layer.bias is None else layer.bias.double())


def _rows(channels: int, heads: int) -> list[slice]:
    width = channels // heads
    return [slice(start, start + width) for start in range(0, channels, width)]


def _weights(query: Tensor, tokens: Tensor, weight: Tensor, bias: Tensor | None, heads: int) -> Tensor:
    """(N, T, heads): the share of every token in every head, for keys ``weight t + bias``.

    There is one query, so it is taken through the key projection once, instead of every token.
    """
    n, channels = query.shape
    # One per channel: onnxruntime takes a single number into the product before it, as a float32.
    query = query / query.new_tensor([math.sqrt(channels // heads)] * channels)
    weight = weight.double()
    # Stacked and not transposed, here and below: onnxruntime 1.20 makes one node of a transpose and a product, and has
    # no float64 kernel for it.
    directions = torch.stack([query[:, rows] @ weight[rows] for rows in _rows(channels, heads)], dim=2)
    scores = tokens @ directions
    if bias is not None:
        scores = scores + (query * bias.double()).reshape(n, heads, channels // heads).sum(2)[:, None]
    return torch.softmax(scores, dim=1)


def _attended(weights: Tensor, tokens: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """(N, C): the weighted mean of values ``weight t + bias``, heads side by side: that of the tokens, projected."""
    heads, weight = weights.shape[2], weight.double()
    means = torch.stack([weights[:, :, head] for head in range(heads)], dim=1) @ tokens
    values = [F.linear(means[:, head], weight[rows]) for head, rows in enumerate(_rows(len(weight), heads))]
    return torch.cat(values, dim=1) + bias.double()


def _blended(weights: Tensor, values: Tensor) -> Tensor:
    """(N, C): the weighted mean of values that are (N, T, C), heads side by side."""
    n, locations, heads = weights.shape
    by_head = values.reshape(n, locations, heads, values.shape[2] // heads)
    return (weights[:, :, :, None] * by_head).sum(1).flatten(1)


def _normalised(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    """Layer norm over the last axis, spelled out, because the epsilon of the standard node is a float32."""
    centred = x - x.mean(-1, keepdim=True)
    # Once more, because far from 0 the mean itself is rounded.
    centred = centred - centred.mean(-1, keepdim=True)
    variance = centred.square().mean(-1, keepdim=True)
    deviation = torch.sqrt(variance + x.new_tensor(norm.eps))
    # Weight first: where the division comes first, onnxruntime puts the standard node in its place.
    return centred * norm.weight.double() / deviation + norm.bias.double()


def _tents(cells: int, entries: int, like: Tensor) -> Tensor:
    """(cells, entries): the weight of every table entry at every cell; the identity where both are the same number."""
    count = torch.scalar_tensor(cells, dtype=like.dtype, device=like.device)
    cell = torch.arange(cells, dtype=like.dtype, device=like.device)
    place = ((cell + 0.5) * entries / count - 0.5).clamp(0, entries - 1)
    distance = place[:, None] - torch.arange(entries, dtype=like.dtype, device=like.device)
    return (1 - distance.abs()).clamp_min(0)


def reference(
    x: ArrayLike,
    channels: int,
    num_heads: int | None = None,
    size: int | tuple[int, int] = 7,
    output_dim: int | None = None,
    positions: str | None = "interpolate",
    mlp_ratio: float = 4.0,
    activation: str = "gelu",
    qkv_bias: bool = False,
    gamma: float | None = None,
    use_beta: bool = False,
    keepdim: bool = False,
    **state: Floats,
) -> Floats:
    """Attention pooling, location by location, in float64; the state is needed whole, and says which layer it is.

    One NaN or infinity reaches the whole answer of its image.
    """
    x = np.asarray(x, dtype=np.float64)
    heads = num_heads or max(1, channels // 64)
    y = np.empty((x.shape[0], channels if output_dim is None else output_dim))
    for n, image in enumerate(x):
        cells = [image[:, h, w] for h, w in np.ndindex(*image.shape[1:])]
        if "latent" in state:
            y[n] = _of_latent(cells, heads, activation, state)
        elif "wq.weight" in state:
            y[n] = _of_simpool(cells, heads, gamma, state)
        else:
            y[n] = _of_clip(cells, heads, _entries(image.shape[1:], size, state) if positions else None, state)
    return y[:, :, None, None] if keepdim else y


def _of_clip(cells: list[Floats], heads: int, entries: list[Floats] | None, state: Mapping[str, Floats]) -> Floats:
    tokens = [_mean(cells), *cells]
    if entries is not None:
        tokens = [token + entry for token, entry in zip(tokens, entries, strict=True)]
    query = _affine(tokens[0], "q_proj", state)
    keys = [_affine(token, "k_proj", state) for token in tokens]
    values = [_affine(token, "v_proj", state) for token in tokens]
    return _affine(_blend(_shares(query, keys, heads), values), "c_proj", state)


def _of_latent(cells: list[Floats], heads: int, activation: str, state: Mapping[str, Floats]) -> Floats:
    query = _affine(state["latent"][0, 0], "q", state)
    keys, values = zip(*(np.split(_affine(cell, "kv", state), 2) for cell in cells), strict=True)
    y = _affine(_blend(_shares(query, keys, heads), values), "proj", state)
    hidden = _affine(_standardised(y, "norm", state), "mlp.fc1", state)
    curve = _gelu_tanh if activation == "gelu_tanh" else _gelu
    return y + _affine(np.array([curve(float(h)) for h in hidden]), "mlp.fc2", state)


def _of_simpool(cells: list[Floats], heads: int, gamma: float | None, state: Mapping[str, Floats]) -> Floats:
    values = [_standardised(cell, "norm_patches", state) for cell in cells]
    query = _affine(_mean(cells), "wq", state)
    shares = _shares(query, [_affine(value, "wk", state) for value in values], heads)
    if gamma is None:
        return _blend(shares, values)
    least = np.min(values)
    powers = [(value - least + 1e-6) ** gamma for value in values]
    return _blend(shares, powers) ** (1 / gamma) + state.get("beta", 0.0)


def _shares(query: Floats, keys: Sequence[Floats], heads: int) -> Floats:
    """Return the share of every location in every channel's head, (locations, channels)."""
    shares = np.empty((len(keys), len(query)))
    for head in np.split(np.arange(len(query)), heads):
        scores = np.array([exact_sum(query[head] * key[head]) for key in keys]) / math.sqrt(len(head))
        risen = np.exp(scores - scores.max())
        shares[:, head] = (risen / exact_sum(risen))[:, None]
    return shares


def _blend(shares: Floats, values: Sequence[Floats]) -> Floats:
    return exact_sum((shares * np.stack(values)).T)


def _mean(cells: Sequence[Floats]) -> Floats:
    return exact_sum(np.stack(cells, axis=-1), len(cells))


def _affine(x: Floats, name: str, state: Mapping[str, Floats]) -> Floats:
    return exact_sum(state[f"{name}.weight"] * x) + state.get(f"{name}.bias", 0.0)


def _standardised(x: Floats, name: str, state: Mapping[str, Floats]) -> Floats:
    """Return a layer norm whose distances from the mean are rounded once."""
    count = len(x)
    distances = np.array([exact_sum(np.append(np.full(count, value), -x), count) for value in x])
    deviation = np.sqrt(exact_sum(distances**2, count) + 1e-6)
    return distances / deviation * state[f"{name}.weight"] + state[f"{name}.bias"]


def _gelu(h: float) -> float:
    return h * math.erfc(-h / math.sqrt(2)) / 2


def _gelu_tanh(h: float) -> float:
    return h / (1 + math.exp(min(-2 * math.sqrt(2 / math.pi) * (h + 0.044715 * h**3), 700.0)))


def _entries(lengths: Sequence[int], size: int | tuple[int, int], state: Mapping[str, Floats]) -> list[Floats]:
    """Return the table's entry of the mean and, between its four neighbours in the table, of every location."""
    first, *rest = state["positional_embedding"]
    high, wide = (size, size) if isinstance(size, int) else size
    found = [first]
    for row, column in np.ndindex(*lengths):
        terms = [
            float(down * across) * rest[i * wide + j]
            for i, down in _neighbours(row, lengths[0], high)
            for j, across in _neighbours(column, lengths[1], wide)
        ]
        found.append(exact_sum(np.stack(terms, axis=-1)))
    return found


def _neighbours(cell: int, cells: int, entries: int) -> list[tuple[int, Fraction]]:
    """Return the one or two entries around a cell's centre with their weights, which are exact."""
    place = min(max(Fraction(2 * cell + 1, 2) * entries / cells - Fraction(1, 2), Fraction(0)), Fraction(entries - 1))
    before = math.floor(place)
    pairs = [(before, 1 - (place - before)), (before + 1, place - before)]
    return [(entry, weight) for entry, weight in pairs if weight]


def _trained(seed: int, **shapes: tuple[int, ...]) -> dict[str, Any]:
    """Numbers that trained parameters of these shapes could hold; two underscores stand for the dot in a name."""
    rng = np.random.default_rng(seed)
    return {name.replace("__", "."): rng.standard_normal(shape) / shape[-1] ** 0.5 for name, shape in shapes.items()}


def _linears(seed: int, rows: Mapping[str, int], columns: int) -> dict[str, Any]:
    """Weights and biases of linear layers with these numbers of rows."""
    rng = np.random.default_rng(seed)
    weights = {f"{name}.weight": rng.standard_normal((count, columns)) / columns**0.5 for name, count in rows.items()}
    return weights | {f"{name}.bias": 0.3 * rng.standard_normal(count) for name, count in rows.items()}


def _clip(channels: int, entries: int, output_dim: int) -> dict[str, Any]:
    rows = {"q_proj": channels, "k_proj": channels, "v_proj": channels, "c_proj": output_dim}
    return {**_trained(1, positional_embedding=(entries, channels)), **_linears(0, rows, channels)}


def _latent(channels: int, hidden: int) -> dict[str, Any]:
    rows = {"q": channels, "kv": 2 * channels, "proj": channels, "mlp.fc1": hidden}
    norm = {"norm.weight": np.linspace(0.5, 1.5, channels), **_trained(1, norm__bias=(channels,))}
    linear = {**_linears(0, rows, channels), **_linears(2, {"mlp.fc2": channels}, hidden)}
    return {**_trained(3, latent=(1, 1, channels)), **linear, **norm}


def _simpool(channels: int) -> dict[str, Any]:
    square = (channels, channels)
    drawn = _trained(0, wq__weight=square, wk__weight=square, norm_patches__bias=(channels,))
    return {**drawn, "norm_patches.weight": np.linspace(0.5, 1.5, channels)}


METHOD = Method(
    (AttentionPool2d,),
    summary="One query attends to all locations and takes a weighted mean of their values.",
    paper=Paper(
        "Learning Transferable Visual Models From Natural Language Supervision",
        "Radford, Kim, Hallacy, Ramesh, Goh, Agarwal, et al.",
        2021,
        "arXiv:2103.00020",
    ),
    reference=reference,
    training="attention over all locations",
    inference="attention over all locations",
    operators=(),
    variants=(AttentionPoolLatent2d, SimPool2d),
    dynamic_channels=False,
    cases=(
        Case("clip", {"channels": 3}, state=_clip(3, 50, 3)),
        Case(
            "trained-size",
            {"channels": 4, "num_heads": 2, "size": (9, 11), "output_dim": 5},
            shape=(2, 4, 9, 11),
            state=_clip(4, 100, 5),
        ),
        Case("coarse-table", {"channels": 3, "num_heads": 3, "size": 4, "keepdim": True}, state=_clip(3, 17, 3)),
        Case(
            "no-positions",
            {"channels": 6, "num_heads": 2, "positions": None},
            shape=(2, 6, 7, 8),
            state={name: value for name, value in _clip(6, 1, 6).items() if name != "positional_embedding"},
        ),
        Case(
            "latent",
            {"channels": 4, "num_heads": 2},
            shape=(2, 4, 9, 11),
            state=_latent(4, 16),
            layer=AttentionPoolLatent2d,
        ),
        Case(
            "latent-tanh",
            {"channels": 3, "mlp_ratio": 2.4, "activation": "gelu_tanh", "keepdim": True},
            state=_latent(3, 7),
            layer=AttentionPoolLatent2d,
        ),
        Case("simpool", {"channels": 4, "num_heads": 2}, shape=(2, 4, 9, 11), state=_simpool(4), layer=SimPool2d),
        Case(
            "simpool-power",
            {"channels": 3, "qkv_bias": True, "gamma": 2.0, "use_beta": True, "keepdim": True},
            state={**_simpool(3), **_trained(1, wq__bias=(3,), wk__bias=(3,)), "beta": [0.3]},
            layer=SimPool2d,
        ),
        Case("simpool-steep", {"channels": 3, "gamma": 3.3}, state=_simpool(3), layer=SimPool2d),
    ),
    limits=(
        Limit({"channels": 0}, ValueError, "channels must be a positive int"),
        Limit({"channels": 4, "num_heads": 0}, ValueError, "num_heads must be a positive int"),
        Limit({"channels": 4, "num_heads": 3}, ValueError, "num_heads must divide the number of channels"),
        Limit({"channels": 4, "size": 0}, ValueError, "size must be a positive int"),
        Limit({"channels": 4, "output_dim": 0}, ValueError, "output_dim must be a positive int"),
        Limit({"channels": 4, "positions": "learned"}, ValueError, "positions must be one of"),
        Limit({"channels": 4}, ValueError, "the layer has 4 channels, the input has 3", shape=(2, 3, 7, 7)),
        Limit(
            {"channels": 3, "positions": "fixed"},
            ValueError,
            "the position table is for maps of 7x7, got 9x7",
            shape=(2, 3, 9, 7),
        ),
        Limit({"channels": 3}, ValueError, "there is nothing to pool", shape=(2, 3, 0, 7)),
        Limit({"channels": 3}, ValueError, "expects an input of shape", shape=(2, 3, 9)),
    ),
    notes=(
        "CLIP's layer takes maps of its table's size only: positions='fixed'. OpenAI stretched the table of a vision "
        "transformer bilinearly; timm's AttentionPool2d resizes bicubically, with a filter when it shrinks.",
        "timm's RotAttentionPool2d is another function: it turns queries and keys by their positions and has no table.",
        "The JAX code of SigLIP's head has activation='gelu_tanh'; timm's layer has 'gelu' unless told otherwise.",
        "SimPool's code subtracts the minimum of the whole batch, timm's SimPool2d that of every channel; this layer "
        "subtracts that of the image, as the code does for a single one.",
        "timm's SimPool2d names its parameters norm, q and k, and its layer norm has an epsilon of 1e-5.",
        "Attention scores, weights and sums are made in float64, in the graph too.",
        "onnxruntime has no erf for float64: a float64 file needs activation='gelu_tanh' in AttentionPoolLatent2d.",
    ),
)
