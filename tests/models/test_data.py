"""The data are real, split once and for all, and in the range that the networks were trained on."""

from __future__ import annotations

import sys

import pytest
import torch

from poolexport.errors import MissingExtraError
from poolexport_models.data import digits, photograph


def test_digits_are_float32_in_0_1_and_labelled() -> None:
    data = digits()
    for images, labels in ((data.train_images, data.train_labels), (data.test_images, data.test_labels)):
        assert images.dtype == torch.float32
        assert labels.dtype == torch.int64
        assert images.shape == (len(labels), 1, 16, 16)
        assert images.min() == 0
        assert images.max() == 1


def test_every_digit_is_in_exactly_one_part() -> None:
    data = digits()
    assert len(data.train_labels) + len(data.test_labels) == 1797
    train = {image.numpy().tobytes() for image in data.train_images}
    assert not any(image.numpy().tobytes() in train for image in data.test_images)


def test_a_quarter_of_every_class_is_for_testing() -> None:
    data = digits()
    tested, trained = data.test_labels.bincount(), data.train_labels.bincount()
    assert torch.allclose(tested / (tested + trained), torch.full((10,), 0.25), atol=0.01)


def test_pixels_are_written_as_two_by_two() -> None:
    images = digits().test_images
    assert torch.equal(images[..., ::2, ::2], images[..., 1::2, 1::2])


def test_the_photograph_is_real_and_its_grey_lies_between_its_colours() -> None:
    grey, colour = photograph(), photograph(colour=True)
    assert grey.shape == (1, 1, 320, 320)
    assert colour.shape == (1, 3, 320, 320)
    assert grey.unique().numel() > 10_000
    assert grey.std() > 0.2
    assert (grey[:, 0] <= colour.amax(1) + 1e-6).all()
    assert (grey[:, 0] >= colour.amin(1) - 1e-6).all()


def test_without_scikit_learn_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MissingExtraError, match=r"scikit-learn.*pip install 'poolexport\[demo\]'"):
        digits.__wrapped__()
    with pytest.raises(MissingExtraError, match="photograph"):
        photograph.__wrapped__()
