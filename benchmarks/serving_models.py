"""The two models that all servers serve, exported and proven like any other.

free    hardly any work: what is measured is the server
net     three convolutions with Lp pooling between them, about 2 ms on one core
"""

from __future__ import annotations

from pathlib import Path

import torch

import poolexport
from poolexport.nn import GlobalAvgPool2d, LPPool2d

MODELS = ("free", "net")
IMAGE = (3, 64, 64)


def layers(name: str) -> torch.nn.Sequential:
    """One of the models, always with the same weights."""
    torch.manual_seed(0)
    if name == "free":
        return torch.nn.Sequential(GlobalAvgPool2d(), torch.nn.Flatten()).eval()
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 32, 3, padding=1),
        torch.nn.ReLU(),
        LPPool2d(2, 2),
        torch.nn.Conv2d(32, 64, 3, padding=1),
        torch.nn.ReLU(),
        LPPool2d(2, 2),
        torch.nn.Conv2d(64, 64, 3, padding=1),
        torch.nn.ReLU(),
        GlobalAvgPool2d(),
        torch.nn.Flatten(),
        torch.nn.Linear(64, 10),
    ).eval()


def exported(name: str, folder: Path) -> Path:
    """The bundle of a model, made in a folder."""
    images = torch.randn(2, *IMAGE, generator=torch.Generator().manual_seed(0))
    names = {"input_names": ["x"], "output_names": ["y"]}
    poolexport.export(layers(name), images, folder / name, dynamic_shapes={0: "N"}, **names)
    return folder / name
