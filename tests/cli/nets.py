"""What a user's file looks like, good factories and bad ones; the tests copy it into a folder of their own."""

from __future__ import annotations

import torch
from torch import nn

from poolexport.nn import SoftPool2d, StochasticPool2d

model = nn.Sequential(nn.Conv2d(3, 4, 3), SoftPool2d(2))
settings = {"channels": 3}


def small() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), SoftPool2d(2), nn.MaxPool2d(2))


def talkative() -> nn.Module:
    print("building")
    return small()


def foreign() -> nn.Module:
    """A network with layers of the names and forms that other packages have."""

    class GeM(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.p, self.eps = nn.Parameter(torch.tensor([3.0])), 1e-6

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.clamp(min=self.eps).pow(self.p).mean((2, 3)).pow(1 / self.p)

    class RotAttentionPool2d(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), RotAttentionPool2d(), GeM())


def stochastic() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), StochasticPool2d(2))


def zero_kernel() -> nn.Module:
    return SoftPool2d(0)


def negative_kernel() -> nn.Module:
    return SoftPool2d(-2)


def zero_stride() -> nn.Module:
    return SoftPool2d(2, stride=0)


def negative_stride() -> nn.Module:
    return SoftPool2d(2, stride=-1)


def negative_padding() -> nn.Module:
    return SoftPool2d(2, padding=-1)


def large_kernel() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), SoftPool2d(40))


def needs(channels: int, depth: int = 2) -> nn.Module:
    return nn.Conv2d(channels, depth, 3)


def raises() -> nn.Module:
    raise RuntimeError("no such\nsetting")


def leaves() -> nn.Module:
    raise SystemExit(4)


def stops() -> nn.Module:
    raise KeyboardInterrupt


def hides_a_stop() -> nn.Module:
    try:
        return stops()
    except KeyboardInterrupt as error:
        raise RuntimeError("wrapped") from error


async def later() -> nn.Module:
    return small()


def scripted() -> nn.Module:
    return nn.Sequential(torch.jit.script(nn.Conv2d(3, 4, 3)), SoftPool2d(2))


def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyConv2d(4, 3), SoftPool2d(2))


def no_pooling() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())


def rows() -> nn.Module:
    return nn.Sequential(nn.Linear(16, 4), SoftPool2d(2))


def nothing() -> None:
    small()


def state_dict() -> object:
    return small().state_dict()


class HalfTrained(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), SoftPool2d(2))

    def train(self, mode: bool = True) -> HalfTrained:
        super().train(mode)
        self[1].train()
        return self


class Noisy(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.rand_like(x)


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pool = SoftPool2d(2)

    def forward(self, image: torch.Tensor, depth: torch.Tensor) -> torch.Tensor:
        return self.pool(image) + self.pool(depth).mean(1, keepdim=True)


def wide() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), SoftPool2d(2))
