"""Which network demonstrates which method, and the checkpoint that was trained for it.

Everything is derived from the catalogue: the layer takes the options of the method's first two-dimensional case, and
the kind of answer it gives says which hole it fills. Only which network it goes into stands below.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load as read_tensors
from torch import nn

from poolexport import catalog
from poolexport.errors import InputError
from poolexport.method import Case, Method, takes_several
from poolexport_models.compact import CompactCNN
from poolexport_models.holes import Hole, hole_of
from poolexport_models.region import STRIDE, RegionCNN
from poolexport_models.residual import ResidualCNN
from poolexport_models.streams import StreamsCNN
from poolexport_models.tasks import DigitTask, SceneTask, Task

CHECKPOINTS = Path(__file__).parent / "checkpoints"
SUMS = "SHA256SUMS"
#: The one entry of a checkpoint's metadata; a single entry, because the order of several is not fixed.
METADATA_KEY = "poolexport"

_REMAKE_ALL = "make it with: python -m poolexport_models.train"

#: Methods whose papers put them into residual networks, and so does their checkpoint.
RESIDUAL = frozenset({"dynopool", "lip", "maxblur", "s3pool", "softpool"})

#: Passes over the images, and how many of them at the end under the inference rule, where the usual ones are too few:
#: one layer leaves little of an image, one is noisier in training than any, one divides its channels among its bins.
PASSES = MappingProxyType({"coordinate": (30, 5), "mixed_pooling_dropout": (25, 15), "ps_roi": (30, 5)})
#: Methods whose networks are trained with images of several sizes, because their point is to take any.
SIZES = MappingProxyType({"spp": ((16, 16), (20, 24), (28, 20), (24, 32), (32, 24))})

Network = CompactCNN | ResidualCNN | StreamsCNN | RegionCNN


@dataclass(frozen=True)
class Recipe:
    """How the checkpoint of a method is made.

    Args:
        method: name in the catalogue.
        network: which network.
        hole: where the method's layer goes: "pool", "head", "streams" or "regions".
        options: constructor arguments of the layer; the number of channels in them is replaced by that of the hole.
        seed: of the weights, of the order of the images and of the layer's own draws.
        epochs: passes over the training images.
        settled: how many of them, at the end, a layer that is random in training spends under its inference rule, so
            that the rest of the network learns what that rule answers.
        batch: images per step.
        rate: largest learning rate.
        sizes: rows and columns of the training images, where they are of several sizes.
    """

    method: str
    network: type[Network]
    hole: Hole
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    epochs: int = 15
    settled: int = 5
    batch: int = 64
    rate: float = 0.02
    sizes: tuple[tuple[int, int], ...] = ()

    def layer(self, channels: int) -> nn.Module:
        """The method's layer for a number of channels."""
        return layer_of(self.method, self.options, channels)

    def build(self) -> nn.Module:
        """The network with the layer in its hole, untrained; its weights depend on the seed alone."""
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(self.seed)
            if self.hole in ("pool", "regions"):
                return self.network(self.layer)
            return self.network(head=self.layer)  # type: ignore[call-arg]

    @property
    def task(self) -> Task:
        """What the network is trained and tested on."""
        return SceneTask() if self.hole == "regions" else DigitTask(self.sizes)

    @property
    def file(self) -> str:
        """Name of the checkpoint in its folder."""
        return f"{self.method}.safetensors"


def layer_of(method: str, options: Mapping[str, Any], channels: int) -> nn.Module:
    """The two-dimensional layer of a method, with the number of channels wherever it needs that or is given one."""
    return catalog.methods()[method].layer(2)(**options_of(method, options, channels))


def options_of(method: str, options: Mapping[str, Any], channels: int) -> dict[str, Any]:
    """Options for a number of channels: that is ``channels``; a pooling of regions gets the scale of the detector."""
    parameters = inspect.signature(catalog.methods()[method].layer(2)).parameters
    known = {"channels": channels, "spatial_scale": 1 / STRIDE}
    required = {name for name, parameter in parameters.items() if parameter.default is parameter.empty}
    return {**options, **{name: value for name, value in known.items() if name in required or name in options}}


@cache
def recipes() -> Mapping[str, Recipe]:
    """The recipe of every method that a network of images can be built with, by method name.

    Missing is what needs inputs that no network makes by itself, as the indices of an unpooling.

    Example:
        >>> recipes()["softpool"].network.__name__, recipes()["softpool"].hole
        ('ResidualCNN', 'pool')
    """
    images = {name: method for name, method in catalog.methods().items() if 2 in method.ranks}
    holes = {name: hole for name, method in images.items() if (hole := _hole(method)) is not None}
    return MappingProxyType({name: _recipe(name, hole) for name, hole in holes.items()})


def recipe(method: str) -> Recipe:
    """The recipe of a method.

    Raises:
        InputError: there is no such method, or none of the networks has a place for it.
    """
    try:
        return recipes()[method]
    except KeyError:
        known = ", ".join(sorted(recipes()))
        raise InputError(f"no network demonstrates {method!r}; there is one for {known}") from None


def _hole(method: Method) -> Hole | None:
    """Where in a network the two-dimensional layer of a method goes; None where it takes what no network makes."""
    case = _case(method)
    if not takes_several(method.layer(2)):
        with torch.random.fork_rng(devices=()):
            layer = layer_of(method.name, case.options, 3)
        return hole_of(layer, 3)
    maps, *others = method.inputs(case, np.zeros(case.shape, np.float32))
    if method.companion_axes == ("R_",):
        return "regions"
    return "streams" if all(x.shape == maps.shape and x.dtype == maps.dtype for x in others) else None


def _case(method: Method) -> Case:
    return next(case for case in method.cases if case.rank == 2)


def _recipe(name: str, hole: Hole) -> Recipe:
    networks: dict[Hole, type[Network]] = {"streams": StreamsCNN, "regions": RegionCNN}
    return Recipe(
        method=name,
        network=networks.get(hole, ResidualCNN if name in RESIDUAL else CompactCNN),
        hole=hole,
        options=MappingProxyType(dict(_case(catalog.methods()[name]).options)),
        sizes=SIZES.get(name, ()),
        **dict(zip(("epochs", "settled"), PASSES.get(name, ()))),
    )


def load(method: str, folder: Path = CHECKPOINTS) -> nn.Module:
    """The trained network of a method, in eval mode.

    Args:
        method: name in the catalogue.
        folder: where the checkpoints and their checksums are.

    Raises:
        InputError: there is no such checkpoint, or it is not the file that was trained.

    Example:
        >>> model = load("softpool")
        >>> sum(parameter.numel() for parameter in model.parameters()) < 15_000
        True
    """
    plan = recipe(method)
    content = _read(plan, folder)
    model = plan.build()
    try:
        model.load_state_dict(read_tensors(content), strict=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{plan.file} does not fit the recipe of {method!r}: {reason}; {_remake(method)}") from error
    return model.eval()


def metadata(method: str, folder: Path = CHECKPOINTS) -> Mapping[str, Any]:
    """What a checkpoint says about its training: accuracy on the test images, recipe, versions.

    Raises:
        InputError: there is no such checkpoint.

    Example:
        >>> metadata("softpool")["images"]
        450
    """
    file = folder / recipe(method).file
    if not file.is_file():
        raise InputError(f"there is no checkpoint {file.name}; {_remake(method)}")
    with safe_open(file, framework="pt") as tensors:
        return MappingProxyType(json.loads(tensors.metadata()[METADATA_KEY]))


def checksums(folder: Path = CHECKPOINTS) -> Mapping[str, str]:
    """SHA-256 of every checkpoint by file name, as written in ``SHA256SUMS``.

    Raises:
        InputError: there is no such file, or a line of it is not a checksum and a name.
    """
    file = folder / SUMS
    if not file.is_file():
        raise InputError(f"there is no {SUMS} beside the checkpoints; {_REMAKE_ALL}")
    sums = {}
    for number, line in enumerate(file.read_text(errors="replace").splitlines(), 1):
        found = re.fullmatch(r"([0-9a-f]{64}) [ *](\S+)", line)
        if found is None:
            raise InputError(f"line {number} of {SUMS} is no SHA-256 and file name: {line[:80]!r}; {_REMAKE_ALL}")
        sums[found[2]] = found[1]
    return MappingProxyType(sums)


def _read(plan: Recipe, folder: Path) -> bytes:
    """The bytes of a checkpoint, which are those that its checksum was taken of."""
    file = folder / plan.file
    expected = checksums(folder).get(plan.file)
    if expected is None or not file.is_file():
        raise InputError(f"there is no checkpoint {plan.file} with a checksum; {_remake(plan.method)}")
    content = file.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise InputError(
            f"{plan.file} is not the file that was trained: its SHA-256 is {found}, {SUMS} says {expected}; restore "
            f"it, or {_remake(plan.method)}"
        )
    return content


def _remake(method: str) -> str:
    return f"make it with: python -m poolexport_models.train --only {method}"
