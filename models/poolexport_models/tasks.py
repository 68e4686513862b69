"""What the networks are trained and tested on: digits one by one, digits of several sizes, regions of scenes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from poolexport_models.data import digits
from poolexport_models.scenes import BACKGROUND, scenes

Inputs = tuple[Tensor, ...]
#: Scenes in a step of training for every so many digits; one holds sixteen regions.
SCENE_SHARE = 4


class Task(ABC):
    """What a network has to answer.

    Attributes:
        things: what is counted, in the plural.
        axes: the dynamic axes of every input by name.
    """

    things: str
    axes: Sequence[dict[int, str]]

    @property
    @abstractmethod
    def examples(self) -> int:
        """Training examples, of which a step takes some."""

    @abstractmethod
    def batch(self, chosen: Tensor, step: int) -> tuple[Inputs, Inputs]:
        """Inputs of the chosen training examples, and what is to be answered."""

    @abstractmethod
    def loss(self, answers: Inputs, expected: Inputs) -> Tensor:
        """How far the answers to a batch are from what is expected."""

    @abstractmethod
    def test(self) -> tuple[Inputs, Tensor]:
        """All test inputs, and the class of every thing in them."""

    @abstractmethod
    def few(self) -> Inputs:
        """A few test inputs, to export a network with."""

    def batches(self, size: int) -> Iterator[tuple[Inputs, Inputs]]:
        """One pass over the training examples in random order."""
        for step, chosen in enumerate(torch.randperm(self.examples).split(size)):
            yield self.batch(chosen, step)


@dataclass(frozen=True)
class DigitTask(Task):
    """Which digit an image shows.

    Args:
        sizes: rows and columns of the images, which are 16 by 16 as they come; each step of training has the next.
    """

    sizes: tuple[tuple[int, int], ...] = ()
    things = "digits"
    axes = ({0: "N", 2: "H", 3: "W"},)

    @property
    def examples(self) -> int:
        return len(digits().train_labels)

    def batch(self, chosen: Tensor, step: int) -> tuple[Inputs, Inputs]:
        images = digits().train_images[chosen]
        if self.sizes:
            images = resized(images, self.sizes[step % len(self.sizes)])
        return (images,), (digits().train_labels[chosen],)

    def loss(self, answers: Inputs, expected: Inputs) -> Tensor:
        return F.cross_entropy(answers[0], expected[0])

    def test(self) -> tuple[Inputs, Tensor]:
        return (digits().test_images,), digits().test_labels

    def few(self) -> Inputs:
        return (digits().test_images[:2],)


class SceneTask(Task):
    """Which digit a region of a scene shows, if any, and where exactly it is."""

    things = "regions"
    axes = ({0: "N", 2: "H", 3: "W"}, {0: "R"})

    @property
    def examples(self) -> int:
        return SCENE_SHARE * len(scenes()[0].images)

    def batch(self, chosen: Tensor, step: int) -> tuple[Inputs, Inputs]:
        train = scenes()[0]
        chosen = chosen[: max(1, len(chosen) // SCENE_SHARE)] % len(train.images)
        answers = train.labels[chosen].flatten(), train.shifts[chosen].flatten(0, 1)
        return (train.images[chosen], train.rois(chosen)), answers

    def loss(self, answers: Inputs, expected: Inputs) -> Tensor:
        (scores, shifts), (labels, truth) = answers, expected
        shown = labels != BACKGROUND
        return F.cross_entropy(scores, labels) + F.smooth_l1_loss(shifts[shown], truth[shown], beta=0.1)

    def test(self) -> tuple[Inputs, Tensor]:
        test = scenes()[1]
        everything = torch.arange(len(test.images))
        return (test.images, test.rois(everything)), test.labels.flatten()

    def few(self) -> Inputs:
        test = scenes()[1]
        first = torch.arange(2)
        return test.images[first], test.rois(first)


def resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Images of another size."""
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False)


def answers_of(model: nn.Module, inputs: Inputs) -> Inputs:
    """Every answer of a network, of which most give one."""
    answer = model(*inputs)
    return answer if isinstance(answer, tuple) else (answer,)
