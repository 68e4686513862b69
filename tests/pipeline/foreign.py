"""Stand-ins for layers of other packages: the same names, attributes, states and formulas, written anew."""

from __future__ import annotations

import math
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# timm: heads


class FastAdaptiveAvgPool(nn.Module):
    def __init__(self, flatten: bool = False, dim: tuple[int, int] = (2, 3)) -> None:
        super().__init__()
        self.flatten, self.dim = flatten, dim

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(self.dim, keepdim=not self.flatten)


class FastAdaptiveAvgPool2d(nn.Module):
    """The older form, without axes."""

    def __init__(self, flatten: bool = False) -> None:
        super().__init__()
        self.flatten = flatten

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3), keepdim=not self.flatten)


class FastAdaptiveMaxPool(FastAdaptiveAvgPool):
    def forward(self, x: Tensor) -> Tensor:
        return x.amax(self.dim, keepdim=not self.flatten)


class FastAdaptiveAvgMaxPool(FastAdaptiveAvgPool):
    def forward(self, x: Tensor) -> Tensor:
        keep = not self.flatten
        return (x.mean(self.dim, keepdim=keep) + x.amax(self.dim, keepdim=keep)) / 2


class FastAdaptiveCatAvgMaxPool(nn.Module):
    def __init__(self, flatten: bool = False) -> None:
        super().__init__()
        self.flatten, self.dim_reduce, self.dim_cat = flatten, (2, 3), 1

    def forward(self, x: Tensor) -> Tensor:
        keep = not self.flatten
        return torch.cat([x.mean(self.dim_reduce, keepdim=keep), x.amax(self.dim_reduce, keepdim=keep)], self.dim_cat)


class AdaptiveAvgMaxPool2d(nn.Module):
    def __init__(self, output_size: int | tuple[int, int] = 1) -> None:
        super().__init__()
        self.output_size = output_size

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return F.adaptive_avg_pool2d(x, self.output_size), F.adaptive_max_pool2d(x, self.output_size)

    def forward(self, x: Tensor) -> Tensor:
        average, largest = self.parts(x)
        return (average + largest) / 2


class AdaptiveCatAvgMaxPool2d(AdaptiveAvgMaxPool2d):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat(self.parts(x), 1)


class SelectAdaptivePool2d(nn.Module):
    def __init__(self, pool_type: str = "fast", flatten: bool = False) -> None:
        super().__init__()
        self.pool_type = pool_type
        fast = {"fastmax": FastAdaptiveMaxPool, "fastcatavgmax": FastAdaptiveCatAvgMaxPool}
        if pool_type.startswith("fast"):
            self.pool = fast.get(pool_type, FastAdaptiveAvgPool)(flatten)
            self.flatten = nn.Identity()
        else:
            self.pool = {"avg": nn.AdaptiveAvgPool2d, "avgmax": AdaptiveAvgMaxPool2d}[pool_type](1)
            self.flatten = nn.Flatten(1) if flatten else nn.Identity()

    def is_identity(self) -> bool:
        return not self.pool_type

    def feat_mult(self) -> int:
        return 2 if self.pool_type.endswith("catavgmax") else 1

    def forward(self, x: Tensor) -> Tensor:
        return self.flatten(self.pool(x))


class LsePlus2d(nn.Module):
    def __init__(self, r: float = 10.0, r_learnable: bool = True, flatten: bool = False) -> None:
        super().__init__()
        if r_learnable:
            self.r = nn.Parameter(torch.tensor(r))
        else:
            self.register_buffer("r", torch.tensor(r))
        self.flatten = flatten

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[2] * x.shape[3]
        y = (torch.logsumexp(self.r * x, (2, 3), keepdim=True) - math.log(n)) / self.r
        return y.flatten(1) if self.flatten else y


# timm: windows


def same_pads(x: Tensor, kernel: tuple[int, int], stride: tuple[int, int]) -> list[int]:
    """For F.pad: what is missing so that the length over the stride, rounded up, remains; the odd cell at the end."""
    pads: list[int] = []
    for n, k, s in reversed(list(zip(x.shape[2:], kernel, stride))):
        missing = max((math.ceil(n / s) - 1) * s + k - n, 0)
        pads += [missing // 2, missing - missing // 2]
    return pads


class AvgPool2dSame(nn.AvgPool2d):
    def __init__(self, kernel_size: int, stride: int, count_include_pad: bool = True) -> None:
        super().__init__((kernel_size,) * 2, (stride,) * 2, (0, 0), False, count_include_pad)

    def forward(self, x: Tensor) -> Tensor:
        padded = F.pad(x, same_pads(x, self.kernel_size, self.stride))
        return F.avg_pool2d(padded, self.kernel_size, self.stride, count_include_pad=self.count_include_pad)


class MaxPool2dSame(nn.MaxPool2d):
    def __init__(self, kernel_size: int, stride: int, dilation: int = 1) -> None:
        super().__init__((kernel_size,) * 2, (stride,) * 2, (0, 0), (dilation,) * 2)

    def forward(self, x: Tensor) -> Tensor:
        padded = F.pad(x, same_pads(x, self.kernel_size, self.stride), value=-math.inf)
        return F.max_pool2d(padded, self.kernel_size, self.stride, 0, self.dilation)


class MedianPool2d(nn.Module):
    def __init__(
        self, kernel_size: int = 3, stride: int = 1, padding: int | tuple[int, ...] = 0, same: bool = False
    ) -> None:
        super().__init__()
        self.k, self.stride, self.same = (kernel_size,) * 2, (stride,) * 2, same
        self.padding = (padding,) * 4 if isinstance(padding, int) else padding

    def forward(self, x: Tensor) -> Tensor:
        pads = same_pads(x, self.k, self.stride) if self.same else self.padding
        cells = F.pad(x, list(pads), mode="reflect")
        for axis in (2, 3):
            cells = cells.unfold(axis, self.k[axis - 2], self.stride[axis - 2])
        return cells.flatten(4).median(-1).values


# blurs


def binomial(size: int, rank: int = 2) -> Tensor:
    row = torch.tensor([math.comb(size - 1, i) for i in range(size)], dtype=torch.float32) / 2 ** (size - 1)
    product = torch.ones(())
    for _ in range(rank):
        product = product[..., None] * row
    return product


class BlurPool2d(nn.Module):
    """timm's."""

    def __init__(
        self, channels: int | None = None, filt_size: int = 3, stride: int = 2, pad_mode: str = "reflect"
    ) -> None:
        super().__init__()
        self.channels, self.filt_size, self.stride, self.pad_mode = channels, filt_size, stride, pad_mode
        self.padding = [(stride - 1 + filt_size - 1) // 2] * 4
        self.register_buffer("filt", binomial(filt_size).repeat(channels or 1, 1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.filt.expand(x.shape[1], -1, -1, -1)
        return F.conv2d(F.pad(x, self.padding, mode=self.pad_mode), weight, stride=self.stride, groups=x.shape[1])


class BlurPool2D(nn.Module):
    """kornia's."""

    def __init__(self, kernel_size: int, stride: int = 2) -> None:
        super().__init__()
        self.kernel_size, self.stride = kernel_size, stride
        self.register_buffer("kernel", binomial(kernel_size))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.kernel.to(x).expand(x.shape[1], 1, -1, -1)
        return F.conv2d(x, weight, stride=self.stride, padding=(self.kernel_size - 1) // 2, groups=x.shape[1])


class MaxBlurPool2D(BlurPool2D):
    def __init__(self, kernel_size: int, stride: int = 2, max_pool_size: int = 2, ceil_mode: bool = False) -> None:
        super().__init__(kernel_size, stride)
        self.max_pool_size, self.ceil_mode = max_pool_size, ceil_mode

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.max_pool2d(x, self.max_pool_size, 1, ceil_mode=self.ceil_mode))


class EdgeAwareBlurPool2D(BlurPool2D):
    pass


class BlurPool(nn.Module):
    """antialiased-cnns'."""

    rank = 2

    def __init__(
        self, channels: int, pad_type: str = "reflect", filt_size: int = 4, stride: int = 2, pad_off: int = 0
    ) -> None:
        super().__init__()
        self.filt_size, self.stride, self.pad_off, self.channels = filt_size, stride, pad_off, channels
        before = (filt_size - 1) // 2 + pad_off
        kinds = {
            "reflect": "ReflectionPad",
            "replicate": "ReplicationPad",
            "zero": "ZeroPad",
            "circular": "CircularPad",
        }
        kind = getattr(nn, f"{kinds[pad_type]}{self.rank}d")
        self.pad = kind((before, filt_size - 1 - before + 2 * pad_off) * self.rank)
        filt = binomial(filt_size, self.rank)[None, None].repeat(channels, 1, *(1,) * self.rank)
        self.register_buffer("filt", filt)

    def forward(self, x: Tensor) -> Tensor:
        conv = {1: F.conv1d, 2: F.conv2d}[self.rank]
        return conv(self.pad(x), self.filt, stride=self.stride, groups=x.shape[1])


class BlurPool1D(BlurPool):
    rank = 1


# global means and concatenations


class AdaptiveConcatPool2d(nn.Module):
    """fastai's, or with ``averages_first`` one of the copies of it."""

    def __init__(self, size: int | None = None, averages_first: bool = False) -> None:
        super().__init__()
        self.size = size or 1
        self.ap, self.mp = nn.AdaptiveAvgPool2d(self.size), nn.AdaptiveMaxPool2d(self.size)
        self.averages_first = averages_first

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.ap(x), self.mp(x)] if self.averages_first else [self.mp(x), self.ap(x)], 1)


class AdaptiveConcatPool1d(AdaptiveConcatPool2d):
    def __init__(self) -> None:
        super().__init__()
        self.ap, self.mp = nn.AdaptiveAvgPool1d(self.size), nn.AdaptiveMaxPool1d(self.size)


class GeM(nn.Module):
    """cnnimageretrieval's; ``flat`` and numbers that are no parameters are other people's."""

    def __init__(self, p: float = 3, eps: float = 1e-6, learned: bool = True, flat: bool = False) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.ones(1) * p) if learned else p
        self.eps, self.flat = eps, flat

    def order(self) -> Tensor | float:
        return self.p

    def forward(self, x: Tensor) -> Tensor:
        powers = x.clamp(min=self.eps).pow(self.order())
        y = F.avg_pool2d(powers, powers.shape[2:]).pow(1 / self.order())
        return y.flatten(1) if self.flat else y


class GeMmp(GeM):
    def __init__(self, p: float = 3, mp: int = 1, eps: float = 1e-6) -> None:
        super().__init__(p, eps)
        self.p, self.mp = nn.Parameter(torch.ones(mp) * p), mp

    def order(self) -> Tensor:
        return self.p[:, None, None]


# SoftPool


class SoftPool2d(nn.Module):
    """The package on the CPU; ``own_weights`` is the paper's function, which it has on a GPU and in early versions."""

    own_weights = False
    clamp = False

    def __init__(self, kernel_size: int = 2, stride: int | None = None, force_inplace: bool = False) -> None:
        super().__init__()
        self.kernel_size, self.stride, self.force_inplace = kernel_size, stride, force_inplace

    def forward(self, x: Tensor) -> Tensor:
        weights = x.exp() if self.own_weights else x.exp().sum(1, keepdim=True)
        pool = {3: F.avg_pool1d, 4: F.avg_pool2d, 5: F.avg_pool3d}[x.dim()]
        y = pool(x * weights, self.kernel_size, self.stride) / pool(weights, self.kernel_size, self.stride)
        return y.relu() if self.clamp else y


class SoftPool1d(SoftPool2d):
    pass


class SoftPool3d(SoftPool2d):
    pass


# LIP


class SoftGate(nn.Module):
    coeff = 12.0

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x) * self.coeff


def conv(channels: int, filters: int, size: int) -> nn.Conv2d:
    return nn.Conv2d(channels, filters, size, padding=size // 2, bias=False)


def importance(x: Tensor, logit: Tensor, kernel: int = 3, stride: int = 2, padding: int = 1) -> Tensor:
    weights = logit.exp()
    return F.avg_pool2d(x * weights, kernel, stride, padding) / F.avg_pool2d(weights, kernel, stride, padding)


class SimplifiedLIP(nn.Module):
    def __init__(self, channels: int, names: tuple[str, str] = ("conv", "bn")) -> None:
        super().__init__()
        norm = nn.InstanceNorm2d(channels, affine=True)
        parts = {names[0]: conv(channels, channels, 3), names[1]: norm, "gate": SoftGate()}
        self.logit = nn.Sequential(OrderedDict(parts))

    def forward(self, x: Tensor) -> Tensor:
        return importance(x, self.logit(x))


def hidden(channels: int, width: int) -> dict[str, nn.Module]:
    return {
        "conv1": conv(channels, width, 1),
        "bn1": nn.InstanceNorm2d(width, affine=True),
        "relu1": nn.ReLU(inplace=True),
        "conv2": conv(width, width, 3),
        "bn2": nn.InstanceNorm2d(width, affine=True),
        "relu2": nn.ReLU(inplace=True),
    }


class BottleneckShared(nn.Module):
    def __init__(self, channels: int, width: int = 128) -> None:
        super().__init__()
        self.logit = nn.Sequential(OrderedDict(hidden(channels, width)))

    def forward(self, x: Tensor) -> Tensor:
        return self.logit(x)


def bottleneck_of_the_resnet() -> type[nn.Module]:
    class BottleneckLIP(nn.Module):
        def __init__(self, channels: int, width: int = 128) -> None:
            super().__init__()
            norm = nn.InstanceNorm2d(channels, affine=True)
            parts = {"conv": conv(width, channels, 1), "bn": norm, "gate": SoftGate()}
            self.postprocessing = nn.Sequential(OrderedDict(parts))

        def forward_with_shared(self, x: Tensor, shared: Tensor) -> Tensor:
            return importance(x, self.postprocessing(shared))

    return BottleneckLIP


def bottleneck_of_the_densenet() -> type[nn.Module]:
    class BottleneckLIP(nn.Module):
        def __init__(self, channels: int, width: int = 128) -> None:
            super().__init__()
            last = {"conv3": conv(width, channels, 1), "bn3": nn.InstanceNorm2d(channels, affine=True)}
            self.logit = nn.Sequential(OrderedDict({**hidden(channels, width), **last, "gate": SoftGate()}))

        def forward(self, x: Tensor) -> Tensor:
            return importance(x, self.logit(x), 2, 2, 0)

    return BottleneckLIP


# DPP


class pospowbias(nn.Module):
    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        self.Lambda, self.Alpha = nn.Parameter(torch.zeros(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        power, level = (p.exp()[:, None, None] for p in (self.Lambda, self.Alpha))
        return x**power + level


class DPP(nn.Module):
    """A port that can run: the compiler that the authors' file needs is gone."""

    runs = True

    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        self.pospowbias = pospowbias(channels)

    def forward(self, x: Tensor) -> Tensor:
        if not self.runs:
            raise NameError("name 'best_options' is not defined")

        def spread(t: Tensor) -> Tensor:
            return F.interpolate(F.avg_pool2d(t, 2), scale_factor=2, mode="nearest")

        v = (x - spread(x)) ** 2 + 1e-3
        w = self.pospowbias(v / spread(v))
        return F.avg_pool2d(x * w, 2) / F.avg_pool2d(w, 2)


# attention


def attended(x: Tensor, q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """(N, T, C): every token's weighted mean of values, heads side by side."""
    n, tokens, channels = x.shape
    split = (t.reshape(n, tokens, heads, channels // heads).transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(*split).transpose(1, 2).reshape(n, tokens, channels)


def with_mean(x: Tensor) -> Tensor:
    cells = x.flatten(2).transpose(1, 2)
    return torch.cat([cells.mean(1, keepdim=True), cells], 1)


def attention_of_clip() -> type[nn.Module]:
    class AttentionPool2d(nn.Module):
        def __init__(self, spacial_dim: int, embed_dim: int, num_heads: int, output_dim: int | None = None) -> None:
            super().__init__()
            self.positional_embedding = nn.Parameter(torch.randn(spacial_dim**2 + 1, embed_dim) / embed_dim**0.5)
            self.k_proj, self.q_proj, self.v_proj = (nn.Linear(embed_dim, embed_dim) for _ in range(3))
            self.c_proj = nn.Linear(embed_dim, output_dim or embed_dim)
            self.num_heads = num_heads

        def forward(self, x: Tensor) -> Tensor:
            tokens = with_mean(x) + self.positional_embedding
            projected = (layer(tokens) for layer in (self.q_proj, self.k_proj, self.v_proj))
            return self.c_proj(attended(tokens, *projected, self.num_heads)[:, 0])

    return AttentionPool2d


def attention_of_timm() -> type[nn.Module]:
    class AttentionPool2d(nn.Module):
        def __init__(
            self,
            in_features: int,
            feat_size: int,
            out_features: int,
            num_heads: int,
            qkv_bias: bool = True,
            qkv_separate: bool = False,
            class_token: bool = False,
        ) -> None:
            super().__init__()
            self.embed_dim = self.in_features = in_features
            self.out_features, self.feat_size, self.num_heads = out_features, (feat_size, feat_size), num_heads
            self.pool_type = "token"
            self.cls_token = nn.Parameter(torch.zeros(1, in_features)) if class_token else None
            self.q = self.k = self.v = self.qkv = None
            if qkv_separate:
                self.q, self.k, self.v = (nn.Linear(in_features, in_features, bias=qkv_bias) for _ in range(3))
            else:
                self.qkv = nn.Linear(in_features, 3 * in_features, bias=qkv_bias)
            self.drop = nn.Dropout(0.0)
            self.proj = nn.Linear(in_features, out_features)
            self.pos_embed = nn.Parameter(torch.randn(feat_size**2 + 1, in_features))

        def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
            tokens = with_mean(x) + self.pos_embed
            if self.qkv is None:
                q, k, v = (layer(tokens) for layer in (self.q, self.k, self.v))
            else:
                q, k, v = self.qkv(tokens).chunk(3, -1)
            y = attended(tokens, q, k, v, self.num_heads)[:, 0]
            return y if pre_logits else self.proj(y)

    return AttentionPool2d


class RotAttentionPool2d(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


class Mlp(nn.Module):
    def __init__(self, channels: int, hidden: int, act: nn.Module) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(channels, hidden), nn.Linear(hidden, channels)
        self.act, self.drop1, self.norm, self.drop2 = act, nn.Dropout(0.0), nn.Identity(), nn.Dropout(0.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop2(self.fc2(self.norm(self.drop1(self.act(self.fc1(x))))))


class AttentionPoolLatent(nn.Module):
    """timm's, which takes tokens."""

    def __init__(
        self,
        in_features: int,
        num_heads: int = 8,
        mlp_ratio: float = 4.0,
        qk_norm: bool = False,
        latent_len: int = 1,
        pos_embed: str = "",
        pool_type: str = "token",
        norm_layer: type[nn.Module] | None = nn.LayerNorm,
        act: nn.Module | None = None,
        drop: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_heads, self.latent_len, self.pool = num_heads, latent_len, pool_type
        self.pos_embed = nn.Parameter(torch.zeros(9, in_features)) if pos_embed else None
        self.latent = nn.Parameter(torch.randn(1, latent_len, in_features))
        self.q, self.kv = nn.Linear(in_features, in_features), nn.Linear(in_features, 2 * in_features)
        self.q_norm, self.k_norm = (nn.LayerNorm(in_features) if qk_norm else nn.Identity() for _ in range(2))
        self.proj, self.proj_drop = nn.Linear(in_features, in_features), nn.Dropout(drop)
        self.norm = nn.Identity() if norm_layer is None else norm_layer(in_features)
        self.mlp = Mlp(in_features, int(in_features * mlp_ratio), act or nn.GELU())

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        q, (k, v) = self.q(self.latent).expand(len(x), -1, -1), self.kv(x).chunk(2, 2)
        split = (t.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for t in (q, k, v))
        y = self.proj_drop(self.proj(F.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2)))
        y = y + self.mlp(self.norm(y))
        return y[:, 0] if self.pool == "token" else y.mean(1)


class SimPool2d(nn.Module):
    """timm's; older ones have no ``flatten``, and keep an axis."""

    names = ("norm", "q", "k")
    eps = 1e-5

    def __init__(
        self,
        dim: int,
        num_heads: int = 1,
        qkv_bias: bool = False,
        qk_norm: bool = False,
        gamma: float | None = None,
        flatten: bool | None = None,
    ) -> None:
        super().__init__()
        self.num_heads, self.scale, self.gamma = num_heads, (dim // num_heads) ** -0.5, gamma
        if flatten is not None:
            self.flatten = flatten
        parts = nn.LayerNorm(dim, eps=self.eps), nn.Linear(dim, dim, qkv_bias), nn.Linear(dim, dim, qkv_bias)
        for name, part in zip(self.names, parts):
            setattr(self, name, part)
        self.q_norm = self.k_norm = nn.LayerNorm(dim // num_heads) if qk_norm else nn.Identity()

    def pooled(self, x: Tensor) -> Tensor:
        norm, query, key = (getattr(self, name) for name in self.names)
        cells = x.flatten(2).transpose(1, 2)
        values = norm(cells)
        return attended(
            values, query(cells.mean(1, keepdim=True)).expand_as(values), key(values), values, self.num_heads
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.pooled(x)[:, :1]
        return y.squeeze(1) if getattr(self, "flatten", False) else y


class SimPool(SimPool2d):
    """The authors', whose scale may be given."""

    names = ("norm_patches", "wq", "wk")
    eps = 1e-6

    def __init__(self, dim: int, num_heads: int = 1, qk_scale: float | None = None, gamma: float | None = None) -> None:
        super().__init__(dim, num_heads, gamma=gamma)
        self.scale = qk_scale or self.scale

    def forward(self, x: Tensor) -> Tensor:
        return self.pooled(x)[:, 0].squeeze()


# fast-MPN-COV


class MPNCOV(nn.Module):
    def __init__(
        self,
        iterNum: int = 3,
        is_sqrt: bool = True,
        is_vec: bool = True,
        input_dim: int = 2048,
        dimension_reduction: int | None = None,
    ) -> None:
        super().__init__()
        self.iterNum, self.is_sqrt, self.is_vec, self.dr = iterNum, is_sqrt, is_vec, dimension_reduction
        if self.dr is not None:
            block = nn.Conv2d(input_dim, self.dr, 1, bias=False), nn.BatchNorm2d(self.dr), nn.ReLU(inplace=True)
            self.conv_dr_block = nn.Sequential(*block)

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.dr is None else self.conv_dr_block(x)
        cells = x.flatten(2) - x.mean((2, 3))[:, :, None]
        y = cells @ cells.transpose(1, 2) / cells.shape[2]
        if self.is_sqrt:
            one = torch.eye(y.shape[1])
            trace = y.diagonal(dim1=1, dim2=2).sum(1)[:, None, None]
            y, z = y / trace, one
            for _ in range(self.iterNum):
                step = (3 * one - z @ y) / 2
                y, z = y @ step, step @ z
            y = y * trace.sqrt()
        if self.is_vec:
            rows, columns = torch.triu_indices(y.shape[1], y.shape[1])
            y = y[:, rows, columns, None]
        return y


def rooted(x: Tensor, thresh: float) -> Tensor:
    return x.sign() * (x.abs() + thresh).sqrt()


class BCNN(nn.Module):
    def __init__(self, thresh: float = 1e-8, is_vec: bool = True, input_dim: int = 2048) -> None:
        super().__init__()
        self.thresh, self.is_vec, self.output_dim = thresh, is_vec, input_dim**2

    def forward(self, x: Tensor) -> Tensor:
        cells = x.flatten(2)
        y = rooted(cells @ cells.transpose(1, 2) / cells.shape[2], self.thresh)
        return F.normalize(y.flatten(1) if self.is_vec else y)


def sketch(channels: int, bins: int, seed: int) -> Tensor:
    """(channels, bins) with a sign in one bin of every channel."""
    rng = torch.Generator().manual_seed(seed)
    matrix = torch.zeros(channels, bins)
    signs = 2.0 * torch.randint(2, (channels,), generator=rng) - 1
    matrix[torch.arange(channels), torch.randint(bins, (channels,), generator=rng)] = signs
    return matrix


def circular(a: Tensor, b: Tensor) -> Tensor:
    """The circular convolution along the last axis."""
    return torch.fft.ifft(torch.fft.fft(a) * torch.fft.fft(b)).real


class CBP(nn.Module):
    """Its matrices are plain tensors in a list, and its answer is put into a tensor of the default type."""

    def __init__(self, thresh: float = 1e-8, projDim: int = 8192, input_dim: int = 512) -> None:
        super().__init__()
        self.thresh, self.projDim, self.input_dim, self.output_dim = thresh, projDim, input_dim, projDim
        self.sparseM = [sketch(input_dim, projDim, seed) for seed in (1, 2)]

    def forward(self, x: Tensor) -> Tensor:
        y = torch.ones(len(x), self.output_dim)
        for n, image in enumerate(x):
            cells = image.flatten(1).T
            y[n] = circular(cells @ self.sparseM[0], cells @ self.sparseM[1]).sum(0)
        return F.normalize(rooted(y, self.thresh))


# compact bilinear pooling of two maps


class CompactBilinearPooling(nn.Module):
    def __init__(self, input_dim1: int, input_dim2: int, output_dim: int, sum_pool: bool = True) -> None:
        super().__init__()
        self.input_dim1, self.input_dim2, self.output_dim, self.sum_pool = input_dim1, input_dim2, output_dim, sum_pool
        self.sparse_sketch_matrix1 = sketch(input_dim1, output_dim, 1).to_sparse()
        self.sparse_sketch_matrix2 = sketch(input_dim2, output_dim, 2)

    def forward(self, bottom1: Tensor, bottom2: Tensor) -> Tensor:
        a, b = (x.permute(0, 2, 3, 1) for x in (bottom1, bottom2))
        y = circular(a @ self.sparse_sketch_matrix1.to_dense(), b @ self.sparse_sketch_matrix2)
        return y.sum((1, 2)) if self.sum_pool else y


def compact_of_parameters() -> type[nn.Module]:
    class CompactBilinearPooling(nn.Module):
        def __init__(
            self, sizes: tuple[int, int], output_dim: int, sum_pool: bool, bins_last: bool, factor: int
        ) -> None:
            super().__init__()
            self.output_dim, self.sum_pool, self.bins_last, self.factor = output_dim, sum_pool, bins_last, factor
            self.sketch1 = nn.Parameter(sketch(sizes[0], output_dim, 3), requires_grad=False)
            self.sketch2 = nn.Parameter(sketch(sizes[1], output_dim, 4), requires_grad=False)

        def forward(self, x1: Tensor, x2: Tensor) -> Tensor:
            a, b = (x.permute(0, 2, 3, 1) for x in (x1, x2))
            y = circular(a @ self.sketch1, b @ self.sketch2) * self.factor
            return y.sum((1, 2)) if self.sum_pool else y if self.bins_last else y.permute(0, 3, 1, 2)

    return CompactBilinearPooling


class CountSketch(nn.Module):
    def __init__(self, input_size: int, output_size: int, seed: int) -> None:
        super().__init__()
        matrix = sketch(input_size, output_size, seed)
        self.register_buffer("h", matrix.abs().argmax(1))
        self.register_buffer("s", matrix.sum(1))


def compact_of_sketches() -> type[nn.Module]:
    class CompactBilinearPooling(nn.Module):
        def __init__(self, input1_size: int, input2_size: int, output_size: int) -> None:
            super().__init__()
            self.sketch1, self.sketch2 = (
                CountSketch(input1_size, output_size, 5),
                CountSketch(input2_size, output_size, 6),
            )
            self.output_size = output_size

        def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
            ends = (x, self.sketch1), (x if y is None else y, self.sketch2)
            made = []
            for end, part in ends:
                h = part.h.expand(end.shape)
                made.append(end.new_zeros(*end.shape[:-1], self.output_size).scatter_add(-1, h, end * part.s))
            return circular(*made)

    return CompactBilinearPooling
