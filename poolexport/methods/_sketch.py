"""What methods that pool products of channels into bins share: their random numbers, and what follows the sums."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from poolexport.methods._layers import Layer, require_choice, require_positive
from poolexport.methods._signed_root import NORMS, normalised
from poolexport_ops.compact_bilinear import compact_bilinear

#: From so many pairs per bin on, a transform takes less time than adding them up.
CROWDED = 12


class SketchLayer(Layer):
    """A layer that holds hashes and signs for the channels of two inputs, and normalises the sums of its bins."""

    rand_h_1: Tensor
    rand_s_1: Tensor
    rand_h_2: Tensor
    rand_s_2: Tensor

    def __init__(
        self,
        channels: tuple[int, int],
        output_dim: int,
        signed_sqrt: bool,
        sqrt_eps: float,
        norm: str,
        norm_eps: float,
        norm_over: str,
        channels_last: bool,
    ) -> None:
        super().__init__()
        for name, value in (("channels", channels[0]), ("other_channels", channels[1]), ("output_dim", output_dim)):
            if value < 1:
                raise ValueError(f"{name} must be a positive int, got {value!r}")
        if not 0 <= sqrt_eps < math.inf:
            raise ValueError(f"sqrt_eps must be a finite number, not below 0, got {sqrt_eps!r}")
        require_choice("norm", norm, NORMS)
        require_positive("norm_eps", norm_eps)
        require_choice("norm_over", norm_over, ("sample", "location"))
        self.sizes = channels
        self.output_dim = output_dim
        self.signed_sqrt = signed_sqrt
        self.sqrt_eps = sqrt_eps
        self.norm = norm
        self.norm_eps = norm_eps
        self.norm_over = norm_over
        self.channels_last = channels_last

    def hold_sketches(self, seed: int, given: Mapping[str, ArrayLike | None], learn: bool) -> None:
        """Hold hashes and signs, those that are not given drawn by four seeds: hashes and signs of both inputs."""
        require_seed(seed)
        for end, size in enumerate(self.sizes):
            name, hashes = f"rand_h_{end + 1}", given[f"rand_h_{end + 1}"]
            if hashes is None:
                hashes = drawn(seed + 4 * end, self.output_dim, size)
            self.register_buffer(name, _hashes(name, hashes, size, self.output_dim))
            name, signs = f"rand_s_{end + 1}", given[f"rand_s_{end + 1}"]
            if signs is None:
                signs = 2 * drawn(seed + 4 * end + 2, 2, size) - 1
            self.hold(name, _signs(name, signs, size), learn)

    def hold(self, name: str, numbers: Tensor, learn: bool) -> None:
        if learn:
            self.register_parameter(name, nn.Parameter(numbers))
        else:
            self.register_buffer(name, numbers)

    def sketched(self, x: Tensor, y: Tensor, *, pooled: bool) -> Tensor:
        """Sums of the products of (N, C, L) and (N, D, L) in float64, by bin; over all locations where ``pooled``."""
        ends = (self.rand_h_1, self.rand_s_1.double(), self.rand_h_2, self.rand_s_2.double())
        crowded = math.prod(self.sizes) > CROWDED * self.output_dim
        by = "transform" if crowded and not pooled else "pairs"
        z: Tensor = compact_bilinear(x, y, *ends, output_dim=self.output_dim, pooled=int(pooled), by=by)
        return z

    def finished(self, z: Tensor) -> Tensor:
        """Signed root and l2 normalisation of (N, d, ...)."""
        if self.signed_sqrt:
            # A bin of 0 stays 0, and has no gradient: that of the root would be infinite.
            z = z.sign() * torch.where(z == 0, 1.0, z.abs() + z.new_tensor(self.sqrt_eps)).sqrt()
        axes = 1 if self.norm_over == "location" else tuple(range(1, z.dim()))
        return normalised(z, self.norm, self.norm_eps, axes)

    def require_channels(self, *inputs: Tensor) -> None:
        for size, x in zip(self.sizes, inputs):
            if x.shape[1] != size:
                raise ValueError(f"the layer has {size} channels, the input has {x.shape[1]}")

    def extra_repr(self) -> str:
        shown: dict[str, Any] = {"channels": self.sizes[0], "output_dim": self.output_dim}
        if self.sizes[0] != self.sizes[1]:
            shown["other_channels"] = self.sizes[1]
        shown |= {"signed_sqrt": self.signed_sqrt, "norm": self.norm}
        return ", ".join(f"{name}={value!r}" for name, value in shown.items())

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
        accepted = dict(state_dict)
        for name in ("rand_h_1", "rand_s_1", "rand_h_2", "rand_s_2"):
            numbers = accepted.get(prefix + name)
            if numbers is None:
                continue
            size = self.sizes[name.endswith("2")]
            try:
                if "_h_" in name:
                    _hashes(prefix + name, numbers.detach(), size, self.output_dim)
                else:
                    _signs(prefix + name, numbers.detach(), size)
            except ValueError as error:
                error_msgs.append(str(error))
                # What is refused is not loaded: the layer keeps what it holds.
                accepted[prefix + name] = getattr(self, name, numbers)
        super()._load_from_state_dict(
            accepted, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )


def require_seed(seed: int) -> None:
    if not 0 <= seed < 2**32 - 6:
        raise ValueError(f"seed must be an int from 0 to 2**32 - 7, got {seed!r}")


def drawn(seed: int, below: int, size: int | tuple[int, ...]) -> NDArray[np.int64]:
    """Ints from numpy's legacy generator, which published codes draw from, on every machine the same."""
    return np.random.RandomState(seed).randint(below, size=size, dtype=np.int64)


def _hashes(name: str, hashes: ArrayLike | Tensor, size: int, bins: int) -> Tensor:
    array = np.asarray(hashes)
    whole = array.shape == (size,) and np.issubdtype(array.dtype, np.integer)
    if not whole or not ((array >= 0) & (array < bins)).all():
        found = f"{array.dtype} of shape {array.shape}"
        raise ValueError(
            f"{name} must hold {size} ints from 0 to {bins - 1}, got {found}"
            + (f" from {array.min()} to {array.max()}" if whole else "")
        )
    return torch.as_tensor(array.astype(np.int64))


def _signs(name: str, signs: ArrayLike | Tensor, size: int) -> Tensor:
    array = np.asarray(signs, dtype=np.float64)
    if array.shape != (size,) or not np.isfinite(array).all():
        raise ValueError(f"{name} must hold {size} finite numbers, got an array of shape {array.shape}")
    return torch.as_tensor(array.astype(np.float32))
