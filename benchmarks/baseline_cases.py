"""The cases of the baseline: small modules that use one pooling as people write it."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Case:
    """One model and its input.

    Args:
        group, name: what it is called.
        make: the model; layers are in eval mode unless ``train``.
        shape: of the first input.
        batch: its batch axis, None where there is none.
        spatial: its other dynamic axes.
        step: by how much these grow for the second size.
        train: leave the model in training mode.
        others: inputs after the first.
        positive: draw from [0, 1) instead of a normal distribution.
        scale: times what is drawn.
    """

    group: str
    name: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...] = (2, 3, 8, 8)
    batch: int | None = 0
    spatial: tuple[int, ...] = (2, 3)
    step: int = 2
    train: bool = False
    others: tuple[Tensor, ...] = ()
    positive: bool = False
    scale: float = 1.0

    def model(self) -> nn.Module:
        torch.manual_seed(0)
        random.seed(0)
        return self.make().train(self.train)

    def inputs(self, shape: tuple[int, ...], seed: int) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(seed)
        draw = torch.rand if self.positive else torch.randn
        return (draw(shape, generator=generator) * self.scale, *self.others)


class Call(nn.Module):
    """A function as a model."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


class CallTwo(Call):
    def forward(self, x: Tensor, y: Tensor) -> Any:  # type: ignore[override]
        return self.function(x, y)


CASES: list[Case] = []
LINE, VOLUME = (2, 3, 11), (2, 3, 8, 8, 8)
RANKS = {1: (LINE, (2,)), 2: ((2, 3, 8, 8), (2, 3)), 3: (VOLUME, (2, 3, 4))}


def add(group: str, name: str, make: Callable[[], nn.Module], rank: int = 2, **options: Any) -> None:
    shape, spatial = RANKS[rank]
    CASES.append(Case(group, name, make, **{"shape": shape, "spatial": spatial, **options}))


def call(group: str, name: str, function: Callable[..., Any], rank: int = 2, **options: Any) -> None:
    add(group, name, lambda: Call(function), rank, **options)


UNBATCHED: dict[str, Any] = {"shape": (3, 8, 8), "batch": None, "spatial": ()}

# max
add("max", "MaxPool1d k3 s2", lambda: nn.MaxPool1d(3, 2), 1)
add("max", "MaxPool1d k3 s2 ceil", lambda: nn.MaxPool1d(3, 2, ceil_mode=True), 1)
add("max", "MaxPool2d k2", lambda: nn.MaxPool2d(2))
add("max", "MaxPool2d k3 s2 p1", lambda: nn.MaxPool2d(3, 2, 1))
add("max", "MaxPool2d k3 s2 p1 ceil", lambda: nn.MaxPool2d(3, 2, 1, ceil_mode=True))
add("max", "MaxPool2d k2 s3 ceil (window starts off the edge)", lambda: nn.MaxPool2d(2, 3, ceil_mode=True))
add("max", "MaxPool2d k1 s4 p0 ceil H=6", lambda: nn.MaxPool2d(1, 4, ceil_mode=True), shape=(2, 3, 6, 8))
add("max", "MaxPool2d k3 d2", lambda: nn.MaxPool2d(3, dilation=2))
add("max", "MaxPool2d k3 d2 ceil", lambda: nn.MaxPool2d(3, dilation=2, ceil_mode=True))
add("max", "MaxPool2d k(3,2) s(2,1) p(1,0) d(1,2)", lambda: nn.MaxPool2d((3, 2), (2, 1), (1, 0), (1, 2)))
add("max", "MaxPool2d return_indices", lambda: nn.MaxPool2d(2, return_indices=True))
add("max", "MaxPool2d return_indices p1 d2", lambda: nn.MaxPool2d(3, 2, 1, 2, return_indices=True))
add("max", "MaxPool1d return_indices", lambda: nn.MaxPool1d(3, 2, return_indices=True), 1)
add("max", "MaxPool3d k2", lambda: nn.MaxPool3d(2), 3)
add("max", "MaxPool3d k3 s2 p1 ceil", lambda: nn.MaxPool3d(3, 2, 1, ceil_mode=True), 3)
add("max", "MaxPool3d return_indices", lambda: nn.MaxPool3d(2, return_indices=True), 3)
add("max", "MaxPool2d unbatched (C,H,W)", lambda: nn.MaxPool2d(2), **UNBATCHED)
call("max", "MinPool via -max(-x)", lambda x: -F.max_pool2d(-x, 2))

# avg
add("avg", "AvgPool1d k3 s2", lambda: nn.AvgPool1d(3, 2), 1)
add("avg", "AvgPool1d k3 s2 p1 ceil include", lambda: nn.AvgPool1d(3, 2, 1, ceil_mode=True), 1)
add("avg", "AvgPool2d k2", lambda: nn.AvgPool2d(2))
add("avg", "AvgPool2d k3 s2 p1 include", lambda: nn.AvgPool2d(3, 2, 1))
add("avg", "AvgPool2d k3 s2 p1 exclude", lambda: nn.AvgPool2d(3, 2, 1, count_include_pad=False))
add("avg", "AvgPool2d k3 s2 ceil p0 include", lambda: nn.AvgPool2d(3, 2, ceil_mode=True))
add("avg", "AvgPool2d k3 s2 p1 ceil include", lambda: nn.AvgPool2d(3, 2, 1, ceil_mode=True))
add("avg", "AvgPool2d k3 s2 p1 ceil exclude", lambda: nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False))
add("avg", "AvgPool2d k2 s3 ceil (window starts off the edge)", lambda: nn.AvgPool2d(2, 3, ceil_mode=True))
add("avg", "AvgPool2d k3 s3 p1 ceil include off-edge", lambda: nn.AvgPool2d(3, 3, 1, ceil_mode=True))
add("avg", "AvgPool2d k2 divisor_override=1", lambda: nn.AvgPool2d(2, divisor_override=1))
add("avg", "AvgPool2d k3 s2 p1 divisor_override=5", lambda: nn.AvgPool2d(3, 2, 1, divisor_override=5))
add("avg", "AvgPool3d k2", lambda: nn.AvgPool3d(2), 3)
add("avg", "AvgPool3d k3 s2 p1 ceil include", lambda: nn.AvgPool3d(3, 2, 1, ceil_mode=True), 3)
add(
    "avg",
    "AvgPool3d k3 s2 p1 ceil exclude",
    lambda: nn.AvgPool3d(3, 2, 1, ceil_mode=True, count_include_pad=False),
    3,
)
add("avg", "AvgPool3d k2 divisor_override=3", lambda: nn.AvgPool3d(2, divisor_override=3), 3)
add("avg", "AvgPool3d p(1,0,1)", lambda: nn.AvgPool3d(3, 2, (1, 0, 1)), 3)
add("avg", "AvgPool2d unbatched (C,H,W)", lambda: nn.AvgPool2d(2), **UNBATCHED)


# lp
class GeM(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.tensor(3.0))

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x.clamp(min=1e-6).pow(self.p), (x.size(-2), x.size(-1))).pow(1.0 / self.p)


add("lp", "LPPool1d p2", lambda: nn.LPPool1d(2, 3, 2), 1)
add("lp", "LPPool2d p1 signed input", lambda: nn.LPPool2d(1, 2))
add("lp", "LPPool2d p2 signed input", lambda: nn.LPPool2d(2, 2))
add("lp", "LPPool2d p3 positive input", lambda: nn.LPPool2d(3, 2), positive=True)
add("lp", "LPPool2d p3 signed input", lambda: nn.LPPool2d(3, 2))
add("lp", "LPPool2d p1.5 positive", lambda: nn.LPPool2d(1.5, 2), positive=True)
add("lp", "LPPool2d p2 k3 s2 ceil", lambda: nn.LPPool2d(2, 3, 2, ceil_mode=True))
add("lp", "LPPool2d p16 large", lambda: nn.LPPool2d(16, 2), positive=True)
add("lp", "LPPool3d p2", lambda: nn.LPPool3d(2, 2), 3)
add("lp", "GeM (clamp,pow,mean,root)", GeM)

# fractional
SAMPLES = torch.rand(2, 3, 2, generator=torch.Generator().manual_seed(3))
add("fractional", "FractionalMaxPool2d k2 ratio .5", lambda: nn.FractionalMaxPool2d(2, output_ratio=0.5))
add("fractional", "FractionalMaxPool2d k3 out 4", lambda: nn.FractionalMaxPool2d(3, output_size=4))
add(
    "fractional",
    "FractionalMaxPool2d fixed _random_samples",
    lambda: nn.FractionalMaxPool2d(2, output_ratio=0.5, _random_samples=SAMPLES),
    batch=None,
)
add(
    "fractional",
    "FractionalMaxPool2d fixed _random_samples, out 4, return_indices",
    lambda: nn.FractionalMaxPool2d(2, output_size=4, return_indices=True, _random_samples=SAMPLES),
    batch=None,
)
add("fractional", "FractionalMaxPool2d return_indices", lambda: nn.FractionalMaxPool2d(2, 4, return_indices=True))
add("fractional", "FractionalMaxPool3d k2 out 4", lambda: nn.FractionalMaxPool3d(2, output_size=4), 3)

# adaptive
add("adaptive", "AdaptiveAvgPool1d(1)", lambda: nn.AdaptiveAvgPool1d(1), 1)
add("adaptive", "AdaptiveAvgPool1d(5) of 11", lambda: nn.AdaptiveAvgPool1d(5), 1)
add("adaptive", "AdaptiveAvgPool2d(1)", lambda: nn.AdaptiveAvgPool2d(1))
add("adaptive", "AdaptiveAvgPool2d(2) of 8 (factor)", lambda: nn.AdaptiveAvgPool2d(2))
add("adaptive", "AdaptiveAvgPool2d(3) of 8 (non-factor)", lambda: nn.AdaptiveAvgPool2d(3))
add("adaptive", "AdaptiveAvgPool2d(7) of 10 (non-factor)", lambda: nn.AdaptiveAvgPool2d(7), shape=(2, 3, 10, 10))
add("adaptive", "AdaptiveAvgPool2d(12) of 8 (upsampling)", lambda: nn.AdaptiveAvgPool2d(12))
add("adaptive", "AdaptiveAvgPool2d((None,4)) of 8", lambda: nn.AdaptiveAvgPool2d((None, 4)))
add("adaptive", "AdaptiveAvgPool3d(2) of 8", lambda: nn.AdaptiveAvgPool3d(2), 3)
add("adaptive", "AdaptiveAvgPool3d(3) of 8", lambda: nn.AdaptiveAvgPool3d(3), 3)
add("adaptive", "AdaptiveMaxPool1d(5) of 11", lambda: nn.AdaptiveMaxPool1d(5), 1)
add("adaptive", "AdaptiveMaxPool2d(1)", lambda: nn.AdaptiveMaxPool2d(1))
add("adaptive", "AdaptiveMaxPool2d(2) of 8 (factor)", lambda: nn.AdaptiveMaxPool2d(2))
add("adaptive", "AdaptiveMaxPool2d(3) of 8 (non-factor)", lambda: nn.AdaptiveMaxPool2d(3))
add("adaptive", "AdaptiveMaxPool2d((None,4)) of 8", lambda: nn.AdaptiveMaxPool2d((None, 4)))
add("adaptive", "AdaptiveMaxPool2d(2) return_indices", lambda: nn.AdaptiveMaxPool2d(2, return_indices=True))
add("adaptive", "AdaptiveMaxPool3d(2) of 8", lambda: nn.AdaptiveMaxPool3d(2), 3)

# gap
call("gap", "GAP mean((2,3))", lambda x: x.mean((2, 3)))
call("gap", "GMP amax((2,3))", lambda x: x.amax((2, 3)))
call("gap", "F.avg_pool2d(x, x.shape[2:])", lambda x: F.avg_pool2d(x, x.shape[2:]))
call("gap", "F.max_pool2d(x, x.shape[2:])", lambda x: F.max_pool2d(x, x.shape[2:]))

# unpool
call(
    "unpool",
    "MaxUnpool1d after MaxPool1d",
    lambda x: F.max_unpool1d(*F.max_pool1d(x, 2, return_indices=True), 2),
    1,
    shape=(2, 3, 12),
)
call("unpool", "MaxUnpool2d after MaxPool2d", lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2))
call(
    "unpool",
    "MaxUnpool2d output_size=x.size()",
    lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2, output_size=x.size()),
)
call("unpool", "MaxUnpool3d after MaxPool3d", lambda x: F.max_unpool3d(*F.max_pool3d(x, 2, return_indices=True), 2), 3)


# mixed
class Mixed(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.gate = nn.Parameter(torch.tensor(0.3))
        self.conv = nn.Conv2d(3, 1, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        a, b = F.max_pool2d(x, 2), F.avg_pool2d(x, 2)
        if self.kind == "learned":
            share: Any = self.gate.sigmoid()
        elif self.kind == "gated":
            share = self.conv(x).sigmoid()
        elif self.kind == "torch.rand":
            share = (torch.rand(1) < 0.5).to(x.dtype)
        elif self.kind == "python":
            share = float(random.random() < 0.5)
        else:
            share = (torch.rand(1) < 0.5).to(x.dtype) if self.training else 0.5
        return share * a + (1 - share) * b


add("mixed", "Mixed learned lambda", lambda: Mixed("learned"))
add("mixed", "Mixed gated (conv)", lambda: Mixed("gated"))
add("mixed", "Mixed torch.rand in every mode", lambda: Mixed("torch.rand"))
add("mixed", "Mixed python random in every mode", lambda: Mixed("python"))
add("mixed", "Mixed self.training branch, eval", lambda: Mixed("branch"))
add("mixed", "Mixed self.training branch, TRAIN", lambda: Mixed("branch"), train=True)


# stochastic
class Stochastic(nn.Module):
    def __init__(self, kind: str, always: bool = False) -> None:
        super().__init__()
        self.kind, self.always = kind, always

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        x = x.relu()
        if self.kind == "Tensor.unfold":
            cells = x.unfold(2, 2, 2).unfold(3, 2, 2).flatten(-2)
        else:
            cells = F.unfold(x, 2, stride=2).reshape(n, c, 4, h // 2, w // 2).movedim(2, -1)
        cells = cells + 1e-6
        shares = cells / cells.sum(-1, keepdim=True)
        if not (self.training or self.always):
            return (shares * cells).sum(-1)
        if self.kind == "multinomial":
            place = torch.multinomial(shares.reshape(-1, 4), 1).reshape(*shares.shape[:-1], 1)
        elif self.kind == "gumbel":
            noise = -torch.log(-torch.log(torch.rand_like(shares).clamp(1e-6, 1 - 1e-6)))
            place = (shares.log() + noise).argmax(-1, keepdim=True)
        else:
            drawn = torch.rand_like(shares[..., :1])
            place = (shares.cumsum(-1) < drawn).sum(-1, keepdim=True).clamp(max=3)
        return cells.gather(-1, place).squeeze(-1)


add("stochastic", "Stochastic F.unfold, eval (prob. weighting)", lambda: Stochastic("unfold"))
add("stochastic", "Stochastic Tensor.unfold, eval", lambda: Stochastic("Tensor.unfold"))
add("stochastic", "Stochastic multinomial, TRAIN", lambda: Stochastic("multinomial"), train=True)
add("stochastic", "Stochastic multinomial, no training branch", lambda: Stochastic("multinomial", True))
add("stochastic", "Stochastic rand+cumsum, TRAIN", lambda: Stochastic("cumsum"), train=True)
add("stochastic", "Stochastic gumbel rand_like, TRAIN", lambda: Stochastic("gumbel"), train=True)


# train-mode
def dropping() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.MaxPool2d(2), nn.Dropout(0.5))


def normalising() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.MaxPool2d(2))


add("train-mode", "conv+maxpool+Dropout, eval", dropping)
add("train-mode", "conv+maxpool+Dropout, TRAIN", dropping, train=True)
add("train-mode", "conv+BatchNorm+maxpool, TRAIN", normalising, train=True)


# softpool
def soft_by_average(x: Tensor) -> Tensor:
    weights = x.exp()
    return F.avg_pool2d(weights * x, 2) / F.avg_pool2d(weights, 2)


def soft_by_unfold(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    cells = F.unfold(x, 2, stride=2).reshape(n, c, 4, h // 2, w // 2)
    return (cells.softmax(2) * cells).sum(2)


def soft_by_tensor_unfold(x: Tensor) -> Tensor:
    cells = x.unfold(2, 2, 2).unfold(3, 2, 2).flatten(-2)
    return (cells.softmax(-1) * cells).sum(-1)


call("softpool", "SoftPool exp*avg_pool", soft_by_average)
call("softpool", "SoftPool F.unfold+softmax", soft_by_unfold)
call("softpool", "SoftPool Tensor.unfold+softmax", soft_by_tensor_unfold)
call("softpool", "SoftPool exp*avg_pool, |x|~100 (overflow)", soft_by_average, scale=50.0)


# s3pool
class S3(nn.Module):
    def __init__(self, kind: str, always: bool = False) -> None:
        super().__init__()
        self.kind, self.always = kind, always

    def forward(self, x: Tensor) -> Tensor:
        y = F.max_pool2d(F.pad(x, (0, 1, 0, 1), mode="replicate"), 2, 1)
        if not (self.training or self.always):
            return F.avg_pool2d(y, 2)
        for axis in (2, 3):
            blocks = y.unflatten(axis, (-1, 4))
            picked = []
            for block in blocks.unbind(axis):
                order = torch.randperm(4) if self.kind == "randperm" else torch.rand(4).argsort()
                picked.append(block.index_select(axis, order[:2].sort().values))
            y = torch.cat(picked, axis)
        return y


add("s3pool", "S3Pool eval (avg of max s1)", lambda: S3("rand"), step=4)
add("s3pool", "S3Pool randperm, TRAIN", lambda: S3("randperm"), train=True, step=4, spatial=())
add("s3pool", "S3Pool randperm, no training branch", lambda: S3("randperm", True), step=4, spatial=())
add("s3pool", "S3Pool rand+argsort, TRAIN", lambda: S3("rand"), train=True, step=4, spatial=())


# dpp
def detail_preserving(x: Tensor, symmetric: bool) -> Tensor:
    low = F.interpolate(F.avg_pool2d(x, 2), scale_factor=2, mode="nearest")
    change = x - low
    size = (change * change + 1e-6).sqrt() if symmetric else change.clamp(min=0)
    weights = size.clamp(min=1e-6).pow(0.7) + 0.1
    return F.avg_pool2d(weights * x, 2) / F.avg_pool2d(weights, 2)


call("dpp", "DPP symmetric", partial(detail_preserving, symmetric=True))
call("dpp", "DPP asymmetric", partial(detail_preserving, symmetric=False))


# lip
class Lip(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Sequential(nn.Conv2d(3, 3, 1), nn.InstanceNorm2d(3, affine=True))

    def forward(self, x: Tensor) -> Tensor:
        weights = (self.logits(x).sigmoid() * 12).exp()
        return F.avg_pool2d(weights * x, 3, 2, 1) / F.avg_pool2d(weights, 3, 2, 1)


add("lip", "LIP (conv+InstanceNorm logits)", Lip)


# dynopool
class Dyno(nn.Module):
    def __init__(self, by_item: bool) -> None:
        super().__init__()
        self.ratio = nn.Parameter(torch.tensor(0.6))
        self.by_item = by_item

    def forward(self, x: Tensor) -> Tensor:
        if self.by_item:
            ratio = self.ratio.item()
            size = [int(x.shape[2] * ratio), int(x.shape[3] * ratio)]
        else:
            size = [round(x.shape[2] * 0.6), round(x.shape[3] * 0.6)]
        rows = (torch.arange(size[0], dtype=x.dtype) + 0.5) / size[0] * 2 - 1
        columns = (torch.arange(size[1], dtype=x.dtype) + 0.5) / size[1] * 2 - 1
        grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij")[::-1], -1)
        return F.grid_sample(x, grid.expand(x.shape[0], -1, -1, -1), align_corners=False)


add("dynopool", "DynOPool, size from parameter .item()", lambda: Dyno(True))
add("dynopool", "DynOPool, size from python round()", lambda: Dyno(False))

# gridsample
GRID = torch.rand(2, 5, 6, 2, generator=torch.Generator().manual_seed(4)) * 2.6 - 1.3
for corners in (False, True):
    for mode in ("bilinear", "nearest", "bicubic"):
        for border in ("zeros", "border", "reflection"):
            add(
                "gridsample",
                f"grid_sample {mode} {border} align={corners}",
                lambda m=mode, b=border, c=corners: CallTwo(partial(_sampled, mode=m, border=b, corners=c)),
                batch=None,
                spatial=(),
                others=(GRID,),
            )


def _sampled(x: Tensor, grid: Tensor, mode: str, border: str, corners: bool) -> Tensor:
    return F.grid_sample(x, grid, mode, border, corners)


# covariance
def covariance(x: Tensor) -> Tensor:
    flat = x.flatten(2)
    flat = flat - flat.mean(2, keepdim=True)
    return flat @ flat.mT / flat.shape[2]


def regular(x: Tensor) -> Tensor:
    s = covariance(x)
    return s + 1e-2 * torch.eye(s.shape[-1], dtype=s.dtype)


def upper(x: Tensor) -> Tensor:
    s = covariance(x)
    rows, columns = torch.triu_indices(3, 3)
    return s[:, rows, columns]


def log_by_eigh(x: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(regular(x))
    return (vectors * values.log()[:, None]) @ vectors.mT


def log_by_svd(x: Tensor) -> Tensor:
    u, values, vh = torch.linalg.svd(regular(x))
    return (u * values.log()[:, None]) @ vh


def newton_schulz(x: Tensor) -> Tensor:
    s = regular(x)
    trace = s.diagonal(dim1=1, dim2=2).sum(1)[:, None, None]
    y, z, eye = s / trace, torch.eye(3, dtype=s.dtype).expand_as(s), torch.eye(3, dtype=s.dtype)
    for _ in range(5):
        t = (3 * eye - z @ y) / 2
        y, z = y @ t, t @ z
    return y * trace.sqrt()


call("covariance", "Covariance only + triu", upper)
call("covariance", "Covariance torch.cov (unbatched)", torch.cov, shape=(5, 20), batch=None, spatial=())
call("covariance", "Covariance torch.cov (unbatched), dynamic", torch.cov, shape=(5, 20), batch=None, spatial=(1,))
call("covariance", "Covariance + linalg.eigh log", log_by_eigh)
call("covariance", "Covariance + linalg.svd log", log_by_svd)
call("covariance", "linalg.matrix_exp", lambda x: torch.linalg.matrix_exp(covariance(x)))
call("covariance", "linalg.eigvalsh", lambda x: torch.linalg.eigvalsh(covariance(x)))
call("covariance", "linalg.cholesky", lambda x: torch.linalg.cholesky(regular(x)))
call("covariance", "linalg.inv", lambda x: torch.linalg.inv(regular(x)))
call("covariance", "linalg.det", lambda x: torch.linalg.det(regular(x)))
call("covariance", "linalg.matrix_power 3", lambda x: torch.linalg.matrix_power(covariance(x), 3))
call("covariance", "iSQRT Newton-Schulz (matmul)", newton_schulz)


# spp
def pyramid(x: Tensor, levels: tuple[int, ...], pool: Callable[..., Tensor]) -> Tensor:
    return torch.cat([pool(x, level).flatten(1) for level in levels], 1)


def computed_pyramid(x: Tensor, levels: tuple[int, ...] = (1, 2, 3)) -> Tensor:
    parts = []
    for level in levels:
        kernel = [math.ceil(n / level) for n in x.shape[2:]]
        padding = [(k * level - n + 1) // 2 for k, n in zip(kernel, x.shape[2:])]
        parts.append(F.max_pool2d(x, kernel, kernel, padding).flatten(1))
    return torch.cat(parts, 1)


call("spp", "SPP adaptive_max levels 1,2,4 of 8", lambda x: pyramid(x, (1, 2, 4), F.adaptive_max_pool2d))
call("spp", "SPP adaptive_max levels 1,2,3 of 8", lambda x: pyramid(x, (1, 2, 3), F.adaptive_max_pool2d))
call("spp", "SPP adaptive_avg levels 1,2,4 of 8", lambda x: pyramid(x, (1, 2, 4), F.adaptive_avg_pool2d))
call("spp", "SPP adaptive_avg levels 1,2,3 of 8", lambda x: pyramid(x, (1, 2, 3), F.adaptive_avg_pool2d))
call("spp", "SPP computed kernel/stride/pad", computed_pyramid)

# roi
BOXES = torch.tensor([[0, 0, 0, 4, 5], [1, 2, 1, 7, 7], [0, 3, 3, 6, 4], [1, 1, 2, 5, 7]], dtype=torch.float32)


def roi_by_masks(x: Tensor, boxes: Tensor, bins: int = 2) -> Tensor:
    maps = x[boxes[:, 0].long()]
    first, last = boxes[:, 1:3], boxes[:, 3:5] + 1
    steps = torch.arange(bins, dtype=x.dtype)
    size = (last - first) / bins
    rows, columns = torch.arange(x.shape[2], dtype=x.dtype), torch.arange(x.shape[3], dtype=x.dtype)
    inside = []
    for axis, places in ((1, rows), (0, columns)):
        begin = (first[:, axis, None] + steps * size[:, axis, None]).floor()
        end = (first[:, axis, None] + (steps + 1) * size[:, axis, None]).ceil()
        inside.append((places >= begin[..., None]) & (places < end[..., None]))
    mask = inside[0][:, :, None, :, None] & inside[1][:, None, :, None, :]
    return torch.where(mask[:, None], maps[:, :, None, None], -torch.inf).amax((-2, -1))


def roi_by_loop(x: Tensor, boxes: Tensor) -> Tensor:
    parts = []
    for box in boxes:
        n, x1, y1, x2, y2 = (int(v) for v in box.tolist())
        parts.append(F.adaptive_max_pool2d(x[n, :, y1 : y2 + 1, x1 : x2 + 1], 2))
    return torch.stack(parts)


add("roi", "RoI pool plain-torch masks", lambda: CallTwo(roi_by_masks), spatial=(), others=(BOXES,))
add("roi", "RoI pool python loop with .tolist()", lambda: CallTwo(roi_by_loop), batch=None, spatial=(), others=(BOXES,))


# bilinear
def normalised(z: Tensor) -> Tensor:
    z = z.sign() * z.abs().sqrt()
    return F.normalize(z)


def bilinear(x: Tensor) -> Tensor:
    flat = x.flatten(2)
    return normalised(torch.einsum("ncl,ndl->ncd", flat, flat).flatten(1) / flat.shape[2])


class Compact(nn.Module):
    """Two count sketches of each location's channels, convolved and summed."""

    def __init__(self, kind: str, d: int = 100) -> None:
        super().__init__()
        self.kind, self.d = kind, d
        hashes, signs = torch.randint(d, (2, 3)), torch.randint(2, (2, 3)) * 2.0 - 1
        self.register_buffer("hashes", hashes)
        self.register_buffer("signs", signs)
        sketches = torch.zeros(2, 3, d).scatter(2, hashes[..., None], signs[..., None])
        self.register_buffer("sketches", sketches)
        turns = torch.outer(torch.arange(d), torch.arange(d)) % d * (2 * math.pi / d)
        self.register_buffer("cos", turns.cos())
        self.register_buffer("sin", turns.sin())

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(2).mT
        if self.kind == "index_add":
            wide = rows.new_zeros(*rows.shape[:2], self.d)
            a, b = (wide.index_add(2, self.hashes[i], rows * self.signs[i]) for i in (0, 1))
        else:
            a, b = rows @ self.sketches[0], rows @ self.sketches[1]
        if self.kind == "rfft":
            z = torch.fft.irfft(torch.fft.rfft(a) * torch.fft.rfft(b), n=self.d)
        elif self.kind == "matmul":
            (p, q), (r, s) = ((y @ self.cos, y @ self.sin) for y in (a, b))
            z = ((p * r - q * s) @ self.cos + (p * s + q * r) @ self.sin) / self.d
        else:
            z = torch.fft.ifft(torch.fft.fft(a) * torch.fft.fft(b)).real
        return normalised(z.sum(1))


class LowRank(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.u, self.v, self.out = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.out((self.u(x).tanh() * self.v(x).tanh()).sum((2, 3)))


call("bilinear", "Bilinear einsum+ssqrt+l2", bilinear)
add("bilinear", "Compact bilinear fft/ifft", lambda: Compact("fft"))
add("bilinear", "Compact bilinear rfft/irfft", lambda: Compact("rfft"))
add("bilinear", "Compact bilinear index_add sketch + fft", lambda: Compact("index_add"))
add("bilinear", "Compact bilinear real DFT matmul", lambda: Compact("matmul"))
add("bilinear", "low-rank bilinear (tanh(Ux)*tanh(Vx))", LowRank)


# blur
class Blur(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        line = torch.tensor([1.0, 2.0, 1.0])
        self.register_buffer("kernel", (torch.outer(line, line) / 16).expand(3, 1, 3, 3).clone())

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), self.kernel, stride=2, groups=3)


add("blur", "BlurPool (depthwise conv, reflect pad)", Blur)
