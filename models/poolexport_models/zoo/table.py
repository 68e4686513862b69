"""Every reference network: how it is built, which inputs it takes, and which of their axes may change."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from poolexport.errors import InputError
from poolexport.method import Paper
from poolexport_models.zoo.bcnn import BilinearCNN
from poolexport_models.zoo.clip import CLIPResNet
from poolexport_models.zoo.fast_rcnn import FastRCNN
from poolexport_models.zoo.gem_retrieval import GeMRetrieval
from poolexport_models.zoo.inception import Inception
from poolexport_models.zoo.isqrt_resnet import ISQRTResNet
from poolexport_models.zoo.pooled_resnet import blurpool_resnet, lip_resnet, softpool_resnet
from poolexport_models.zoo.pspnet import PSPNet
from poolexport_models.zoo.resnet import resnet18, resnet50
from poolexport_models.zoo.segnet import SegNet
from poolexport_models.zoo.sppnet import SPPNet
from poolexport_models.zoo.units import settled
from poolexport_models.zoo.vgg import VGG

Answer = Literal["classes", "map", "vector", "regions"]
SHALLOW = (1, 1, 1, 1)
IMAGES: Mapping[int, str] = MappingProxyType({0: "N", 2: "H", 3: "W"})
REGIONS: Mapping[int, str] = MappingProxyType({0: "R"})


@dataclass(frozen=True)
class Network:
    """One reference network.

    Args:
        name: how it is asked for.
        make: builds it, given ``width``, with random weights.
        pooling: what it pools with, in a few words.
        paper: where it was published.
        section: where in the paper.
        width: channels that the published network has where ``make`` counts them.
        image: rows and columns of the published network's images.
        slim: the width that tests use.
        thumbnail: rows and columns of the images that tests use.
        answer: "classes" (scores of an image), "map" (scores of every pixel), "vector" (of an image) or "regions"
            (scores and shifts of every region; the network takes regions besides images).
        slim_options: further options of ``make`` in tests; most networks of blocks have one a stage there.
        note: what the card has to say besides; empty for most.
    """

    name: str
    make: Callable[..., nn.Module]
    pooling: str
    paper: Paper
    section: str
    width: int = 64
    image: tuple[int, int] = (224, 224)
    slim: int = 4
    thumbnail: tuple[int, int] = (64, 72)
    answer: Answer = "classes"
    slim_options: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""

    def build(self, *, slim: bool = False, seed: int = 0) -> nn.Module:
        """The network in eval mode; its weights depend on the seed alone, its norms have seen one batch.

        Args:
            slim: with few channels, as in tests, or as published.
            seed: of the weights, and of the images that the norms have seen.
        """
        options = {"width": self.slim, **self.slim_options} if slim else {"width": self.width}
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(seed)
            # Few channels need more images, or one of them answers 0 to all and has no variance to divide by.
            return settled(self.make(**options), self.sample(16 if slim else 2, slim=slim, seed=seed + 1))

    def sample(self, n: int = 2, *, slim: bool = False, seed: int = 0) -> tuple[Tensor, ...]:
        """``n`` images of noise, and two regions on each where the network takes regions.

        Args:
            n: images.
            slim: of the size that tests use, or of that of the published network.
            seed: of the values.
        """
        generator = torch.Generator().manual_seed(seed)
        rows, columns = self.thumbnail if slim else self.image
        images = torch.randn(n, 3, rows, columns, generator=generator)
        if self.answer != "regions":
            return (images,)
        corners = torch.rand(2 * n, 2, 2, generator=generator).sort(dim=1).values.flatten(1)
        boxes = corners * torch.tensor([columns - 1.0, rows - 1.0] * 2)
        return images, torch.cat([torch.arange(2 * n).unsqueeze(1) // 2, boxes], 1)

    @property
    def axes(self) -> tuple[Mapping[int, str], ...]:
        """Names of the axes that may change, for every input."""
        return (IMAGES, REGIONS) if self.answer == "regions" else (IMAGES,)

    @property
    def parameters(self) -> int:
        """Number of parameters of the published network; nothing is allocated to count them."""
        with torch.device("meta"):
            return sum(parameter.numel() for parameter in self.make(width=self.width).parameters())


VGG_PAPER = Paper(
    "Very Deep Convolutional Networks for Large-Scale Image Recognition", "Simonyan, Zisserman", 2015, "arXiv:1409.1556"
)
RESNET_PAPER = Paper("Deep Residual Learning for Image Recognition", "He et al.", 2016, "arXiv:1512.03385")

_ALL = (
    Network("vgg16", VGG, "max; adaptive average, 7 by 7", VGG_PAPER, "table 1, column D"),
    Network(
        "resnet18",
        resnet18,
        "max; adaptive average",
        RESNET_PAPER,
        "section 3.3, table 1",
        slim_options=MappingProxyType({"blocks": SHALLOW}),
    ),
    Network(
        "resnet50",
        resnet50,
        "max; adaptive average",
        RESNET_PAPER,
        "section 3.3, table 1",
        slim_options=MappingProxyType({"blocks": SHALLOW}),
    ),
    Network(
        "softpool_resnet18",
        softpool_resnet,
        "SoftPool",
        Paper("Refining Activation Downsampling with SoftPool", "Stergiou et al.", 2021, "arXiv:2101.00440"),
        "section 4.2",
        note="The paper replaces the max pooling; here the strides of the blocks are replaced too.",
        slim_options=MappingProxyType({"blocks": SHALLOW}),
    ),
    Network(
        "lip_resnet50",
        lip_resnet,
        "LIP: one convolution in the stem, bottlenecks in the blocks",
        Paper("LIP: Local Importance-based Pooling", "Gao et al.", 2019, "arXiv:1908.04156"),
        "section 4.1, figure 4",
        note="Each pooling has a bottleneck of its own; in the paper the two of a block share a part.",
        slim_options=MappingProxyType({"blocks": SHALLOW}),
    ),
    Network(
        "blurpool_resnet50",
        blurpool_resnet,
        "max and blur in the stem, BlurPool in the blocks",
        Paper("Making Convolutional Networks Shift-Invariant Again", "Zhang", 2019, "arXiv:1904.11486"),
        "section 3.2",
        slim_options=MappingProxyType({"blocks": SHALLOW}),
    ),
    Network(
        "inception_v3",
        Inception,
        "max; average that counts its padding; adaptive average",
        Paper("Rethinking the Inception Architecture for Computer Vision", "Szegedy et al.", 2016, "arXiv:1512.00567"),
        "section 6, table 1",
        width=32,
        image=(299, 299),
        thumbnail=(79, 86),
        slim_options=MappingProxyType({"blocks": (1, 1, 1)}),
        note="Without the auxiliary classifier. H and W of at least 75.",
    ),
    Network(
        "segnet",
        SegNet,
        "max with indices; max unpooling",
        Paper(
            "SegNet: A Deep Convolutional Encoder-Decoder Architecture for Image Segmentation",
            "Badrinarayanan et al.",
            2017,
            "arXiv:1511.00561",
        ),
        "section 3, figures 2 and 3",
        image=(360, 480),
        answer="map",
        note="H and W need not be multiples of 32: each unpooling is told the size of the map that was pooled.",
    ),
    Network(
        "pspnet",
        PSPNet,
        "max; adaptive average into 1, 2, 3 and 6 bins along each axis",
        Paper("Pyramid Scene Parsing Network", "Zhao et al.", 2017, "arXiv:1612.01105"),
        "section 3.2, figure 3",
        image=(233, 233),
        thumbnail=(41, 50),
        answer="map",
        note="ResNet-50, dilated, without the auxiliary loss; its stem has one convolution, not three.",
        slim_options=MappingProxyType({"blocks": SHALLOW}),
    ),
    Network(
        "sppnet",
        SPPNet,
        "max; spatial pyramid of 6, 3, 2 and 1 bins along each axis",
        Paper(
            "Spatial Pyramid Pooling in Deep Convolutional Networks for Visual Recognition",
            "He et al.",
            2014,
            "arXiv:1406.4729",
        ),
        "sections 2.2 and 3.1.2, table 1",
        width=96,
        slim=6,
        thumbnail=(72, 65),
        note="ZF-5, with local response normalisation.",
    ),
    Network(
        "bcnn",
        BilinearCNN,
        "max; bilinear",
        Paper("Bilinear CNN Models for Fine-grained Visual Recognition", "Lin et al.", 2015, "arXiv:1504.07889"),
        "section 3",
        image=(448, 448),
        thumbnail=(48, 65),
        note="The network [D, D], whose two streams are one.",
    ),
    Network(
        "isqrt_resnet50",
        ISQRTResNet,
        "max; iSQRT-COV",
        Paper(
            "Towards Faster Training of Global Covariance Pooling Networks by Iterative Matrix Square Root "
            "Normalization",
            "Li et al.",
            2018,
            "arXiv:1712.01034",
        ),
        "section 3.1, figure 1",
        thumbnail=(65, 80),
        note="The last stage keeps the size of its map.",
        slim_options=MappingProxyType({"blocks": SHALLOW}),
    ),
    Network(
        "fast_rcnn",
        FastRCNN,
        "max; maxima of 7 by 7 bins of every region",
        Paper("Fast R-CNN", "Girshick", 2015, "arXiv:1504.08083"),
        "sections 2.1 and 2.2",
        image=(400, 600),
        thumbnail=(64, 80),
        answer="regions",
        note="The network L, VGG-16; the number of regions is an axis of its own.",
    ),
    Network(
        "clip_resnet50",
        CLIPResNet,
        "average; attention",
        Paper(
            "Learning Transferable Visual Models From Natural Language Supervision",
            "Radford et al.",
            2021,
            "arXiv:2103.00020",
        ),
        "section 2.4",
        answer="vector",
        thumbnail=(64, 70),
        slim_options=MappingProxyType({"size": 2, "blocks": SHALLOW}),
        note="The table of positions is interpolated for maps of other sizes than 7 by 7, so H and W may change; the "
        "published network takes 224 by 224 pixels only, and there both answer the same.",
    ),
    Network(
        "gem_resnet50",
        GeMRetrieval,
        "max; generalized mean, between norms",
        Paper("Fine-tuning CNN Image Retrieval with No Human Annotation", "Radenovic et al.", 2018, "arXiv:1711.02512"),
        "sections 3.2 and 3.4",
        image=(362, 362),
        answer="vector",
        note="The whitening is a linear layer, as in the authors' code; their networks are ResNet-101 and others.",
        slim_options=MappingProxyType({"blocks": SHALLOW}),
    ),
)

#: Every reference network by name.
NETWORKS: Mapping[str, Network] = MappingProxyType({network.name: network for network in _ALL})


def network(name: str) -> Network:
    """The reference network of a name.

    Raises:
        InputError: there is none.

    Example:
        >>> network("resnet50").parameters
        25557032
    """
    if name not in NETWORKS:
        raise InputError(f"there is no reference network {name!r}; there are {', '.join(NETWORKS)}")
    return NETWORKS[name]
