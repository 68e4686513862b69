"""Images composed from handwritten digits, several in each, whose places are known: what a detector is trained on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from poolexport_models.data import digits

#: Rows and columns of a scene, digits in one, and rows of a digit; its columns are those times 0.8 to 1.2.
SIZE = (48, 64)
MOST_DIGITS = 4
HEIGHTS = (14, 24)
#: Regions proposed in one scene, and how many of them lie around each digit.
REGIONS = 16
AROUND = 3
#: A proposal belongs to a digit from this overlap on, and shows the background below that one.
DIGIT_OVERLAP = 0.6
GROUND_OVERLAP = 0.3
BACKGROUND = 10
TRAIN_SCENES, TEST_SCENES = 480, 120


@dataclass(frozen=True)
class Scenes:
    """Scenes, the regions proposed in them, and what is to be answered for every region.

    Args:
        images: (N, 1, H, W) in float32, 0 for paper and 1 for ink.
        regions: (N, R, 4) in float32, corners ``x1, y1, x2, y2`` in pixels.
        labels: (N, R) in int64, the digit in a region, or 10 for background.
        shifts: (N, R, 4) in float32, from a region to its digit's box: how far the centre moves, in widths and heights
            of the region, and the logarithms of how much wider and higher the box is; 0 for background.
    """

    images: Tensor
    regions: Tensor
    labels: Tensor
    shifts: Tensor

    def rois(self, chosen: Tensor) -> Tensor:
        """The regions of the chosen scenes in one list, (len(chosen) R, 5): number of the scene among them, corners."""
        number = torch.arange(len(chosen), dtype=torch.float32).repeat_interleave(REGIONS).unsqueeze(1)
        return torch.cat([number, self.regions[chosen].flatten(0, 1)], dim=1)


@cache
def scenes() -> tuple[Scenes, Scenes]:
    """Scenes for training, of the digits that are for training, and for testing, of those that no training sees.

    Raises:
        MissingExtraError: scikit-learn is not installed.

    Example:
        >>> train, test = scenes()
        >>> test.images.shape, test.regions.shape
        (torch.Size([120, 1, 48, 64]), torch.Size([120, 16, 4]))
    """
    data = digits()
    return (
        _compose(data.train_images, data.train_labels, TRAIN_SCENES, seed=0),
        _compose(data.test_images, data.test_labels, TEST_SCENES, seed=1),
    )


def boxes(regions: Tensor, shifts: Tensor) -> Tensor:
    """The boxes that shifts make of regions: the inverse of what a detector is taught.

    Args:
        regions: (R, 4), corners in pixels.
        shifts: (R, 4), as in ``Scenes``.

    Returns:
        (R, 4), corners in pixels.

    Example:
        >>> boxes(torch.tensor([[0.0, 0.0, 8.0, 4.0]]), torch.tensor([[0.25, 0.0, 0.0, 0.0]]))
        tensor([[ 2.,  0., 10.,  4.]])

    Source:
        Girshick, Donahue, Darrell, Malik, CVPR 2014, appendix C.
    """
    corner, size = regions[:, :2], regions[:, 2:] - regions[:, :2]
    centre = corner + size / 2 + shifts[:, :2] * size
    half = size * shifts[:, 2:].exp() / 2
    return torch.cat([centre - half, centre + half], dim=1)


def overlap(a: NDArray[np.floating], b: NDArray[np.floating]) -> NDArray[np.floating]:
    """Intersection over union of every box of ``a`` (A, 4) with every box of ``b`` (B, 4): (A, B).

    Example:
        >>> overlap(np.array([[0.0, 0, 2, 2]]), np.array([[1.0, 0, 3, 2]])).round(3)
        array([[0.333]])
    """
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    common = np.prod(np.clip(high - low, 0, None), axis=2)
    areas = [np.prod(each[:, 2:] - each[:, :2], axis=1) for each in (a, b)]
    return common / (areas[0][:, None] + areas[1][None] - common)


def _compose(images: Tensor, labels: Tensor, count: int, seed: int) -> Scenes:
    rng = np.random.default_rng(seed)
    made = [_scene(rng, images, labels) for _ in range(count)]
    pictures, regions, answers, shifts = (np.stack(each) for each in zip(*made))
    return Scenes(
        torch.from_numpy(pictures.astype(np.float32))[:, None],
        torch.from_numpy(regions.astype(np.float32)),
        torch.from_numpy(answers),
        torch.from_numpy(shifts.astype(np.float32)),
    )


def _scene(rng: np.random.Generator, images: Tensor, labels: Tensor) -> tuple[NDArray[np.generic], ...]:
    """One scene: picture, regions, labels and shifts."""
    picture = np.zeros(SIZE)
    placed: list[NDArray[np.floating]] = []
    classes: list[int] = []
    for _ in range(int(rng.integers(2, MOST_DIGITS + 1))):
        box = _free_place(rng, placed)
        if box is None:
            continue
        chosen = int(rng.integers(len(labels)))
        x1, y1, x2, y2 = (int(v) for v in box)
        drawn = F.interpolate(images[chosen : chosen + 1], size=(y2 - y1, x2 - x1), mode="bilinear")
        picture[y1:y2, x1:x2] = drawn[0, 0].clamp(0, 1).numpy()
        placed.append(box)
        classes.append(int(labels[chosen]))
    truth = np.stack(placed)
    regions = [_around(rng, box) for box in truth for _ in range(AROUND)]
    while len(regions) < REGIONS:
        box = _anywhere(rng)
        if overlap(box[None], truth).max() < GROUND_OVERLAP:
            regions.append(box)
    proposed = np.stack(regions)[rng.permutation(REGIONS)]
    overlaps = overlap(proposed, truth)
    best = overlaps.argmax(1)
    shows = overlaps.max(1) >= DIGIT_OVERLAP
    answers = np.where(shows, np.array(classes)[best], BACKGROUND).astype(np.int64)
    return picture, proposed, answers, np.where(shows[:, None], _shifts(proposed, truth[best]), 0.0)


def _free_place(rng: np.random.Generator, placed: list[NDArray[np.floating]]) -> NDArray[np.floating] | None:
    """A box for a digit that touches no other; None where a few tries found none."""
    for _ in range(20):
        height = int(rng.integers(*HEIGHTS))
        width = round(height * rng.uniform(0.8, 1.2))
        y, x = int(rng.integers(0, SIZE[0] - height)), int(rng.integers(0, SIZE[1] - width))
        box = np.array([x, y, x + width, y + height], dtype=float)
        if not placed or overlap(box[None], np.stack(placed)).max() == 0:
            return box
    return None


def _around(rng: np.random.Generator, box: NDArray[np.floating]) -> NDArray[np.floating]:
    """A box moved and scaled a little, as a region proposal would be."""
    size = box[2:] - box[:2]
    while True:
        centre = box[:2] + size / 2 + rng.uniform(-0.2, 0.2, 2) * size
        half = size * np.exp(rng.uniform(-0.25, 0.25, 2)) / 2
        moved = np.concatenate([centre - half, centre + half])
        if overlap(moved[None], box[None])[0, 0] >= DIGIT_OVERLAP:
            return moved


def _anywhere(rng: np.random.Generator) -> NDArray[np.floating]:
    size = rng.uniform(HEIGHTS[0], HEIGHTS[1], 2)
    corner = rng.uniform(0, np.array(SIZE[::-1]) - size)
    return np.concatenate([corner, corner + size])


def _shifts(regions: NDArray[np.floating], truth: NDArray[np.floating]) -> NDArray[np.floating]:
    sizes = [each[:, 2:] - each[:, :2] for each in (regions, truth)]
    centres = [each[:, :2] + size / 2 for each, size in zip((regions, truth), sizes)]
    return np.concatenate([(centres[1] - centres[0]) / sizes[0], np.log(sizes[1] / sizes[0])], axis=1)
