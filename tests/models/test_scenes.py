"""The scenes are composed of real digits whose places are known, and differ from one another."""

from __future__ import annotations

import numpy as np
import torch

from poolexport_models.scenes import (
    AROUND,
    BACKGROUND,
    DIGIT_OVERLAP,
    GROUND_OVERLAP,
    MOST_DIGITS,
    REGIONS,
    SIZE,
    TEST_SCENES,
    TRAIN_SCENES,
    boxes,
    overlap,
    scenes,
)


def test_scenes_are_float32_in_0_1_with_regions_in_pixels() -> None:
    for part, count in zip(scenes(), (TRAIN_SCENES, TEST_SCENES)):
        assert part.images.shape == (count, 1, *SIZE)
        assert part.images.dtype == part.regions.dtype == part.shifts.dtype == torch.float32
        assert part.images.min() >= 0
        assert part.images.max() <= 1
        assert part.regions.shape == part.shifts.shape == (count, REGIONS, 4)
        assert (part.regions[..., 2:] > part.regions[..., :2]).all()
        assert part.labels.dtype == torch.int64
        assert set(part.labels.unique().tolist()) == {*range(10), BACKGROUND}


def test_no_two_scenes_are_alike() -> None:
    train, test = scenes()
    seen = {image.numpy().tobytes() for image in torch.cat([train.images, test.images])}
    assert len(seen) == TRAIN_SCENES + TEST_SCENES


def test_labels_and_shifts_are_those_of_the_digits() -> None:
    test = scenes()[1]
    for image, regions, labels, shifts in zip(test.images, test.regions, test.labels, test.shifts):
        shown = labels != BACKGROUND
        placed = boxes(regions[shown], shifts[shown]).round().int().unique(dim=0)
        assert 1 <= len(placed) <= MOST_DIGITS
        assert (shown.sum() >= AROUND * len(placed)).all()
        empty = image[0].clone()
        for x1, y1, x2, y2 in placed.tolist():
            assert image[0, y1:y2, x1:x2].max() > 0.5, "a box without ink"
            empty[y1:y2, x1:x2] = 0
        assert empty.max() == 0, "ink outside of the boxes"
        overlaps = overlap(regions.numpy(), placed.numpy().astype(float)).max(1)
        assert (overlaps[shown.numpy()] >= DIGIT_OVERLAP - 0.01).all()
        assert (overlaps[~shown.numpy()] < GROUND_OVERLAP + 0.01).all()
        assert (shifts[~shown] == 0).all()


def test_regions_of_chosen_scenes_name_their_place_in_the_choice() -> None:
    test = scenes()[1]
    rois = test.rois(torch.tensor([5, 2]))
    assert rois[:, 0].tolist() == [0.0] * REGIONS + [1.0] * REGIONS
    assert torch.equal(rois[REGIONS:, 1:], test.regions[2])


def test_overlap_of_known_boxes() -> None:
    a = np.array([[0.0, 0, 4, 2], [0, 0, 1, 1]])
    b = np.array([[2.0, 0, 6, 2], [0, 0, 4, 2], [5, 5, 6, 6]])
    np.testing.assert_allclose(overlap(a, b), [[4 / 12, 1, 0], [0, 1 / 8, 0]])
