"""Real pictures that come with scikit-learn, so that nothing is downloaded: handwritten digits and a photograph."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from poolexport_models.extras import require

#: Share of the digits that no training sees, and the seed that picks it.
TEST_SHARE = 0.25
SPLIT_SEED = 0
#: Rows and columns of the photograph that are shown: the tower, whose lattices a pooling cannot keep whole.
CROP = (slice(20, 340), slice(48, 368))


@dataclass(frozen=True)
class Digits:
    """Handwritten digits, split once and for all.

    Args:
        train_images, test_images: (N, 1, 16, 16) in float32, 0 for paper and 1 for ink.
        train_labels, test_labels: (N,) in int64, the digit that was written.
    """

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


@cache
def digits() -> Digits:
    """The 1797 digits of scikit-learn, a quarter of each class set aside for testing.

    Every pixel of the original 8 by 8 images is written as 2 by 2, so that two poolings by 2 leave a map of 4 by 4.

    Raises:
        MissingExtraError: scikit-learn is not installed.

    Example:
        >>> digits().test_images.shape
        torch.Size([450, 1, 16, 16])

    Source:
        Alpaydin, Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998: the test
        part, as scikit-learn bundles it.
    """
    purpose = "reading the handwritten digits"
    pixels, labels = require("sklearn.datasets", purpose).load_digits(return_X_y=True)
    split = require("sklearn.model_selection", purpose).train_test_split
    images = (pixels.reshape(-1, 1, 8, 8) / 16.0).repeat(2, axis=2).repeat(2, axis=3).astype(np.float32)
    parts = split(images, labels.astype(np.int64), test_size=TEST_SHARE, random_state=SPLIT_SEED, stratify=labels)
    train_images, test_images, train_labels, test_labels = map(torch.from_numpy, parts)
    return Digits(train_images, train_labels, test_images, test_labels)


@cache
def photograph(*, colour: bool = False) -> Tensor:
    """A real photograph of a tower: float32 in [0, 1].

    Args:
        colour: red, green and blue as three channels, instead of one channel of brightness.

    Shape:
        (1, 1, 320, 320), or (1, 3, 320, 320) in colour.

    Raises:
        MissingExtraError: scikit-learn is not installed.

    Example:
        >>> photograph().shape
        torch.Size([1, 1, 320, 320])

    Source:
        "china.jpg" of scikit-learn; its brightness by ITU-R BT.601.
    """
    pixels = require("sklearn.datasets", "reading the photograph").load_sample_image("china.jpg")[CROP]
    channels = torch.from_numpy(pixels.astype(np.float32) / 255.0).permute(2, 0, 1).unsqueeze(0)
    if colour:
        return channels.contiguous()
    weights = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    return (channels * weights).sum(1, keepdim=True)
