"""Small networks whose files are planted with faults: exported by us, and by torch alone."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import poolexport
from poolexport.nn import AvgPool2d, GeMPool2d, ISQRTCOVPool2d, SoftPool2d
from poolexport_models.compact import CompactCNN
from poolexport_models.residual import ResidualCNN

IMAGES = {0: "N", 2: "H", 3: "W"}


class Branches(nn.Module):
    """Two branches, one module called twice and shared under two names, two inputs, two outputs, bare functions."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 4, 3, padding=1)
        self.right = nn.Conv2d(3, 4, 5, padding=2)
        self.act = nn.ReLU()
        self.again = self.act
        self.shared = nn.Conv2d(8, 8, 3, padding=1)
        self.score = nn.Linear(8, 5)

    def forward(self, x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.cat([self.act(self.left(x)), self.again(self.right(x))], 1)
        y = self.shared(self.shared(y))
        y = F.avg_pool2d(y, 3, stride=2, padding=1)
        z = F.max_pool2d(y, 3, stride=2, padding=1) - 0.5 * F.avg_pool2d(y, 3, stride=2, padding=1)
        scores = self.score((z * weights).mean((2, 3)))
        return torch.softmax(scores, 1), z


class Merged(nn.Module):
    """What torch's own optimiser merges: convolutions with their normalisations."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.conv2, self.norm2 = nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.pool = nn.AvgPool2d(3, 2, padding=1)
        self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.norm1(self.conv1(x))))
        x = self.pool(F.relu(self.norm2(self.conv2(x))))
        return self.fc(x.mean((2, 3)))


class Deep(nn.Module):
    """A hundred and more layers."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*[nn.Sequential(nn.Conv2d(4, 4, 1), nn.Tanh()) for _ in range(60)])
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.blocks(x).mean((2, 3)))


@dataclass(frozen=True)
class Net:
    """A network, its inputs, and how its file is made.

    Args:
        build: makes the network.
        shapes: of its inputs.
        write: makes the bytes of its file.
    """

    build: Callable[[], nn.Module]
    shapes: tuple[tuple[int, ...], ...]
    write: Callable[[nn.Module, tuple[Tensor, ...], Path], bytes]

    def model(self) -> nn.Module:
        """The network in eval mode, with norms that have something to normalise."""
        generator = torch.Generator().manual_seed(0)
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(0)
            model = self.build().eval()
        with torch.no_grad():
            for module in model.modules():
                if isinstance(module, nn.BatchNorm2d):
                    # Variances so small that their epsilon is seen.
                    module.running_var.uniform_(1e-4, 2e-4, generator=generator)
                    module.running_mean.uniform_(-1e-2, 1e-2, generator=generator)
                    module.weight.uniform_(0.005, 0.01, generator=generator)
                    module.bias.uniform_(0.1, 0.5, generator=generator)
        return model

    def inputs(self) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(1)
        return tuple(torch.randn(shape, generator=generator) for shape in self.shapes)


def ours(model: nn.Module, inputs: tuple[Tensor, ...], folder: Path) -> bytes:
    """What poolexport writes, unverified: that is measured elsewhere."""
    axes = IMAGES if len(inputs) == 1 else None
    bundle = poolexport.export(model, inputs, folder / "net.onnx", dynamic_shapes=axes, verify=False)
    return bundle.model.read_bytes()


def alone(optimize: bool) -> Callable[[nn.Module, tuple[Tensor, ...], Path], bytes]:
    """What torch writes without us."""

    def write(model: nn.Module, inputs: tuple[Tensor, ...], folder: Path) -> bytes:
        file = io.BytesIO()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(model, inputs, dynamo=True, optimize=optimize, verbose=False)
        assert program is not None
        program.save(file)
        return file.getvalue()

    return write


def older(model: nn.Module, inputs: tuple[Tensor, ...], folder: Path) -> bytes:
    """What torch's older exporter writes: norms are merged, and only the names of nodes tell of modules."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, inputs, file, dynamo=False)
    return file.getvalue()


NETS: Mapping[str, Net] = MappingProxyType(
    {
        "compact": Net(lambda: CompactCNN(lambda _: SoftPool2d(2), 4), ((2, 1, 12, 13),), ours),
        "residual": Net(
            lambda: ResidualCNN(lambda _: AvgPool2d(3, 2, padding=1), 4, head=lambda _: GeMPool2d()),
            ((2, 1, 12, 13),),
            ours,
        ),
        "covariance": Net(
            lambda: CompactCNN(lambda _: nn.MaxPool2d(2), 3, head=lambda _: ISQRTCOVPool2d()), ((2, 1, 12, 13),), ours
        ),
        "branches": Net(Branches, ((1, 3, 12, 13), (8, 1, 1)), alone(False)),
        "merged": Net(Merged, ((1, 3, 12, 13),), alone(True)),
        "older": Net(Merged, ((1, 3, 12, 13),), older),
        "deep": Net(Deep, ((1, 4, 5, 6),), alone(False)),
    }
)
