"""Multimodal low-rank bilinear pooling (Kim et al.): the product, element by element, of two projected inputs.

    f = act(U x + b_x) o act(V y + b_y), answer = f or P f + b      with act = tanh or the identity

On a map every location's channels are an x, with one y for all of them. Training drops entries of x, y and f before
they are projected; inference does not. Everything is computed in float64.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor, nn

from poolexport.method import Case, Limit, Method, Paper
from poolexport.methods._layers import Layer, require_choice
from poolexport.methods._pointwise import frames, pointwise
from poolexport.reference import Floats, exact_sum
from poolexport_ops import require_rank

ACTIVATIONS = ("tanh", "identity")


class _MLB(Layer):
    """The product, element by element, of the projections of two inputs: a bilinear form of low rank.

    ``forward(x, y)``; beside a map ``x``, ``y`` is one vector for all locations, or a map of the same size.

    Args:
        channels: channels of ``x``.
        y_channels: entries of ``y``, or its channels.
        joint_dim: entries d of the product.
        output_dim: entries of a last projection; None for none.
        activation: "tanh", or "identity" as in the plain formula; it follows both projections.
        dropout: share of the entries of each projection's input that training drops, from 0 to below 1.

    Parameters:
        project_x, project_y: linear layers to the product; project_output: the last one, where there is one.

    Shape:
        (N, C) and (N, D) to (N, d), or to (N, output_dim); for maps (N, C, H, W) and (N, D) or (N, D, H, W) to
        (N, d, H, W).

    Raises:
        ValueError: an option out of range, or inputs of another rank or number of channels, or of batches, types or
            sizes that differ.

    Example:
        >>> import torch
        >>> from poolexport.nn import MLB0d, MLB2d
        >>> x, y = torch.rand(2, 4), torch.rand(2, 3)
        >>> MLB0d(4, 3, joint_dim=5)(x, y).shape, MLB2d(4, 3, 5, output_dim=2)(torch.rand(2, 4, 6, 7), y).shape
        (torch.Size([2, 5]), torch.Size([2, 2, 6, 7]))

    Source:
        Kim, On, Lim, Kim, Ha, Zhang, ICLR 2017, section 2.2 and 3; package jnhwkim/MulLowBiVQA (MLB), which has tanh.
    """

    rank: ClassVar[int]

    def __init__(
        self,
        channels: int,
        y_channels: int,
        joint_dim: int = 1200,
        output_dim: int | None = None,
        activation: str = "tanh",
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        sizes = {"channels": channels, "y_channels": y_channels, "joint_dim": joint_dim, "output_dim": output_dim}
        for name, value in sizes.items():
            if value is not None and value < 1:
                raise ValueError(f"{name} must be a positive int, got {value!r}")
        require_choice("activation", activation, ACTIVATIONS)
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be a number from 0 to below 1, got {dropout!r}")
        self.channels = channels
        self.y_channels = y_channels
        self.joint_dim = joint_dim
        self.output_dim = output_dim
        self.activation = activation
        self.dropout = dropout
        self.project_x = nn.Linear(channels, joint_dim)
        self.project_y = nn.Linear(y_channels, joint_dim)
        self.project_output = nn.Identity() if output_dim is None else nn.Linear(joint_dim, output_dim)

    def _joint(self, layer: nn.Linear, rows: Tensor) -> Tensor:
        joint = pointwise(layer, self._dropped(rows))
        return torch.tanh(joint) if self.activation == "tanh" else joint

    def _answer(self, product: Tensor) -> Tensor:
        return product if self.output_dim is None else pointwise(self.project_output, self._dropped(product))

    def _dropped(self, rows: Tensor) -> Tensor:
        return F.dropout(rows, self.dropout, training=self.training)

    def _require_pair(self, x: Tensor, y: Tensor) -> None:
        if x.shape[1] != self.channels or y.shape[1] != self.y_channels:
            raise ValueError(
                f"the layer takes {self.channels} and {self.y_channels} channels, got {x.shape[1]} and {y.shape[1]}"
            )
        if torch.compiler.is_compiling():
            return
        if x.shape[0] != y.shape[0] or x.dtype != y.dtype or (y.dim() > 2 and x.shape[2:] != y.shape[2:]):
            raise ValueError(
                f"both inputs must have one batch, size and type, got {x.dtype} of shape {tuple(x.shape)} and "
                f"{y.dtype} of shape {tuple(y.shape)}"
            )

    def extra_repr(self) -> str:
        return (
            f"channels={self.channels}, y_channels={self.y_channels}, joint_dim={self.joint_dim}, "
            f"output_dim={self.output_dim}, activation={self.activation!r}, dropout={self.dropout}"
        )


class MLB0d(_MLB):
    rank = 0

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        for each in (x, y):
            require_rank(each, 0, type(self).__name__)
        self._require_pair(x, y)
        product = self._joint(self.project_x, x.double()) * self._joint(self.project_y, y.double())
        return self._answer(product).to(x.dtype)


class MLB2d(_MLB):
    rank = 2

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        vector = isinstance(y, Tensor) and y.dim() == 2
        require_rank(x, 2, type(self).__name__)
        require_rank(y, 0 if vector else 2, type(self).__name__)
        self._require_pair(x, y)
        locations = x.shape[2] * x.shape[3]
        maps = self._joint(self.project_x, frames(x)).reshape(x.shape[0], locations, self.joint_dim)
        others = self._joint(self.project_y, y.double() if vector else frames(y))
        product = maps * others.reshape(x.shape[0], 1 if vector else locations, self.joint_dim)
        answer = self._answer(product.flatten(0, 1))
        rows = answer.reshape(x.shape[0], locations, answer.shape[1]).transpose(1, 2)
        return rows.reshape(x.shape[0], answer.shape[1], *x.shape[2:]).to(x.dtype)


def reference(
    x: ArrayLike,
    y: ArrayLike,
    channels: int,
    y_channels: int,
    joint_dim: int = 1200,
    output_dim: int | None = None,
    activation: str = "tanh",
    dropout: float = 0.5,
    **state: Floats,
) -> Floats:
    """Multimodal low-rank bilinear pooling in eval mode, slowly, in float64, with exact sums; needs the whole state.

    A NaN reaches every entry of its location's answer, and so does an infinity, which tanh makes 1.
    """
    x, y = (np.asarray(value, dtype=np.float64) for value in (x, y))
    answer = np.zeros((x.shape[0], output_dim or joint_dim, *x.shape[2:]))
    for n, *cell in np.ndindex(x.shape[0], *x.shape[2:]):
        at = (n, slice(None), *cell)
        left = _line(state, "project_x", x[at])
        right = _line(state, "project_y", y[n] if y.ndim == 2 else y[at])
        joint = np.tanh(left) * np.tanh(right) if activation == "tanh" else left * right
        answer[at] = joint if output_dim is None else _line(state, "project_output", joint)
    return answer


def _line(state: dict[str, Floats], name: str, v: Floats) -> Floats:
    pairs = zip(state[f"{name}.weight"], state[f"{name}.bias"])
    return np.array([float(exact_sum(np.append(row * v, b))) for row, b in pairs])


def companions(x: ArrayLike, channels: int, y_channels: int, **_: Any) -> tuple[Floats]:
    """One vector for every sample."""
    x = np.asarray(x)
    return (np.random.default_rng(3).standard_normal((x.shape[0], y_channels)).astype(x.dtype),)


def illustration(image: Tensor) -> Tensor:
    """A joint entry of every location and a vector that asks for what differs from the mean."""
    layer = MLB2d(1, 1, joint_dim=1).eval()
    state = {"weight": [[3.0]], "bias": [-3.0 * float(image.mean())]}
    with torch.no_grad():
        for name, values in state.items():
            getattr(layer.project_x, name).copy_(torch.tensor(values).reshape_as(getattr(layer.project_x, name)))
        layer.project_y.weight.fill_(1.0)
        return layer(image[:, :1], image.new_ones(image.shape[0], 1))


def _trained(channels: int, y_channels: int, joint_dim: int, output_dim: int | None = None) -> dict[str, Any]:
    """Numbers that trained projections could hold."""
    rng = np.random.default_rng(0)
    sizes = {"project_x": (joint_dim, channels), "project_y": (joint_dim, y_channels)}
    if output_dim is not None:
        sizes["project_output"] = (output_dim, joint_dim)
    state: dict[str, Any] = {}
    for name, (rows, columns) in sizes.items():
        state[f"{name}.weight"] = 0.7 * rng.standard_normal((rows, columns))
        state[f"{name}.bias"] = 0.2 * rng.standard_normal(rows)
    return state


METHOD = Method(
    (MLB0d, MLB2d),
    summary="The product, element by element, of two projected inputs: a bilinear form of low rank.",
    paper=Paper(
        "Hadamard Product for Low-rank Bilinear Pooling", "Kim, On, Lim, Kim, Ha, Zhang", 2017, "arXiv:1610.04325"
    ),
    reference=reference,
    training="product of projections, with dropout",
    inference="product of projections, without dropout",
    operators=(),
    companions=companions,
    companion_axes=("N_",),
    illustration=illustration,
    dynamic_channels=False,
    random=True,
    cases=(
        Case("vectors", {"channels": 3, "y_channels": 2, "joint_dim": 4}, shape=(2, 3), state=_trained(3, 2, 4)),
        Case(
            "answers",
            {"channels": 5, "y_channels": 3, "joint_dim": 6, "output_dim": 2, "dropout": 0.1},
            shape=(2, 5),
            state=_trained(5, 3, 6, 2),
        ),
        Case(
            "plain",
            {"channels": 3, "y_channels": 2, "joint_dim": 4, "activation": "identity"},
            shape=(2, 3),
            state=_trained(3, 2, 4),
        ),
        Case("map", {"channels": 3, "y_channels": 2, "joint_dim": 4}, shape=(2, 3, 4, 5), state=_trained(3, 2, 4)),
        Case(
            "glimpses",
            {"channels": 2, "y_channels": 5, "joint_dim": 3, "output_dim": 2, "activation": "identity"},
            shape=(1, 2, 5, 3),
            state=_trained(2, 5, 3, 2),
        ),
    ),
    limits=(
        Limit({"channels": 0, "y_channels": 2}, ValueError, "channels must be a positive int", rank=0),
        Limit({"channels": 2, "y_channels": 2, "joint_dim": 0}, ValueError, "joint_dim must be a positive int"),
        Limit({"channels": 2, "y_channels": 2, "output_dim": 0}, ValueError, "output_dim must be a positive int"),
        Limit({"channels": 2, "y_channels": 2, "activation": "relu"}, ValueError, "activation must be one of"),
        Limit({"channels": 2, "y_channels": 2, "dropout": 1.0}, ValueError, "dropout must be a number from 0"),
        Limit({"channels": 2, "y_channels": 4}, ValueError, "the layer takes 2 and 4 channels", shape=(2, 3), rank=0),
        Limit({"channels": 2, "y_channels": 2}, ValueError, "expects an input of shape", shape=(2, 2, 9)),
    ),
    notes=("The authors' release has tanh after both projections; the plain formula of the paper has none.",),
)
