"""What is drawn of a method: its trained layer on a feature map of a digit and on a photograph."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import poolexport
from poolexport import catalog
from poolexport.method import inputs_of
from poolexport_models import pictures
from poolexport_models.data import digits, photograph
from poolexport_models.evidence import ask, ask_all, in_torch
from poolexport_models.pictures import Picture
from poolexport_models.recipes import Recipe, load, recipe
from poolexport_models.region import STRIDE
from poolexport_models.scenes import BACKGROUND, boxes, scenes

RUNTIME = "onnxruntime"
#: The class of the digit whose feature maps are drawn.
SHOWN_DIGIT = 0
#: The test scene that is drawn, and the pixels for each of its own where boxes are drawn on it.
SHOWN_SCENE = 0
ZOOM = 4
#: The photograph is pooled again until its sides are at most this share of what they were ...
SHRINK = 1 / 8
#: ... but never more often than this.
REPEATS = 4
#: Pixels per side of the tiles of a photograph that a head pools one by one.
TILE = 16
#: Pictures side by side of a head that answers many numbers for every channel.
MOST_PARTS = 4
#: Passes over the photograph that are drawn of a layer that is random in training.
DRAWS = 5
#: Brightness that is the strongest red or blue where a pooled photograph is compared with plain averaging.
CONTRAST = 0.3


@dataclass(frozen=True)
class Strip:
    """A row of pictures: an input, what the pooling makes of it in torch and in onnxruntime, how far they are apart.

    Args:
        title: of the row.
        text: what is seen.
        pictures: from left to right.
        reason: why what onnxruntime made of it is wrong; empty where it is right, or not in the pictures.
        how: how the photograph was pooled, in a few words; empty where there is no photograph.
    """

    title: str
    text: str
    pictures: tuple[Picture, ...]
    reason: str = ""
    how: str = ""


def layer_in(plan: Recipe, model: nn.Module) -> nn.Module:
    """The method's layer in a network; the first of two where the hole is between convolutions."""
    return model.get_submodule({"pool": "pool1", "regions": "pool"}.get(plan.hole, "head"))


def strips_of(plan: Recipe, model: nn.Module, folder: Path) -> tuple[Strip, ...]:
    """The trained layer by itself, on a feature map of a digit and on the photograph."""
    layer = layer_in(plan, model)
    if plan.hole == "regions":
        return (_scene(model, folder),)
    if plan.hole == "streams":
        return ()
    data = digits()
    digit = data.test_images[data.test_labels == SHOWN_DIGIT][:1]
    features = _features(model, layer, digit)
    path = folder / "layer.onnx"
    poolexport.export(layer, features.repeat(2, 1, 1, 1), path, dynamic_shapes=plan.task.axes[0], force=True)
    if plan.hole == "head":
        return _head_on_digit(layer, path, digit, features), _head_on_photograph(plan, folder)
    channel = _most_alike(features, digit)
    x, times = _photograph_for(layer, features.shape[1])
    strips = [
        _pool_on_digit(layer, path, digit, features, channel),
        _pool_on_photograph(layer, path, x, channel, times),
    ]
    if catalog.methods()[plan.method].random:
        strips.append(_pool_in_training(plan, layer, x, channel, times))
    return tuple(strips)


def pooled_photograph(method: str) -> np.ndarray:
    """What the trained layer of a method makes of the photograph, (H, W); all but those between convolutions pool every
    tile of it by itself.
    """
    plan = recipe(method)
    model = load(method)
    layer = layer_in(plan, model)
    channels = _features(model, layer, *plan.task.few()).shape[1]
    if plan.hole == "pool":
        return in_torch(layer, *_photograph_for(layer, channels))[0, 0]
    x = photograph()[0, 0].unfold(0, TILE, TILE).unfold(1, TILE, TILE)
    tiles = x.reshape(-1, 1, TILE, TILE).expand(-1, channels, -1, -1).contiguous()
    with torch.no_grad():
        inputs = _boxes_of_tiles(channels) if plan.hole == "regions" else [tiles] * inputs_of(type(layer))
        answers = layer(*inputs).numpy()
    # The first channel's numbers: a small map for every tile, or several of them one channel after the other.
    numbers = answers[:, 0] if answers.ndim == 4 and answers[0, 0].size > 1 else answers.reshape(len(answers), -1)
    if numbers.ndim == 2:
        parts = min(MOST_PARTS, max(1, numbers.shape[1] // channels))
        return np.concatenate([_scaled(numbers[:, i * channels].reshape(x.shape[:2])) for i in range(parts)], axis=1)
    return numbers.reshape(*x.shape[:2], *numbers.shape[1:]).swapaxes(1, 2).reshape(x.shape[0] * numbers.shape[1], -1)


def _boxes_of_tiles(channels: int) -> tuple[Tensor, Tensor]:
    """The photograph as every channel, and its tiles as boxes of a detector."""
    image = photograph().expand(1, channels, -1, -1).contiguous()
    tops, lefts = (range(0, length, TILE) for length in image.shape[2:])
    corners = [[0, left, top, left + TILE - 1, top + TILE - 1] for top in tops for left in lefts]
    boxes = torch.tensor(corners, dtype=torch.float32)
    boxes[:, 1:] *= STRIDE
    return image, boxes


def _scaled(values: np.ndarray) -> np.ndarray:
    """From 0 to 1."""
    span = float(np.ptp(values))
    return (values - values.min()) / span if span else np.full_like(values, 0.5)


def _photograph_for(layer: nn.Module, channels: int) -> tuple[Tensor, int]:
    """The photograph as every channel of a layer's input, and how often to pool it."""
    x = photograph().expand(1, channels, -1, -1).contiguous()
    shrunk = (n for n in range(1, REPEATS) if in_torch(layer, x, n).shape[-1] <= SHRINK * x.shape[-1])
    return x, next(shrunk, REPEATS)


def _features(model: nn.Module, layer: nn.Module, *inputs: Tensor) -> Tensor:
    """The map that reaches a layer of the model when the model sees some inputs."""
    seen: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    try:
        with torch.no_grad():
            model(*inputs)
    finally:
        hook.remove()
    return seen[0]


def _most_alike(features: Tensor, digit: Tensor) -> int:
    """The channel in which a reader recognises the digit best."""
    maps = torch.cat([digit[0], features[0]]).flatten(1)
    return int(torch.corrcoef(maps)[0, 1:].nan_to_num(-1).argmax())


def _pool_on_digit(layer: nn.Module, path: Path, digit: Tensor, features: Tensor, channel: int) -> Strip:
    answers = ask(layer, path, features)
    compared = _compared(answers.torch[0, channel], answers.runtime[0, channel])
    return Strip(
        "A feature map",
        f"A handwritten {SHOWN_DIGIT}, channel {channel} of what the network makes of it, and that channel after the "
        "first pooling.",
        (_digit(digit), pictures.draw(features[0, channel].numpy(), "feature map"), *compared),
        answers.reason,
    )


def _pool_on_photograph(layer: nn.Module, path: Path, x: Tensor, channel: int, times: int) -> Strip:
    """The photograph as every channel of the trained layer's input, pooled several times."""
    answers = ask(layer, path, x, times)
    ours, theirs = answers.torch[0, channel], answers.runtime[0, channel]
    drawn = _drawn(layer, channel)
    settled = f" For this channel training drew {drawn}." if drawn else ""
    averaged = F.adaptive_avg_pool2d(x[0, channel][None, None], ours.shape)[0, 0].numpy()
    low, high = _brightness(ours)
    contrast = (theirs - low) / (high - low) - averaged
    note = f"{pictures.range_of(contrast)}{_clipped(contrast)}"
    return Strip(
        "A photograph",
        f"The same layer, applied {_times(times)} to a photograph: a size that the export never saw."
        f"{_rescaled(low, high)}{settled}",
        (
            original(),
            *_compared(ours, theirs, limits=(low, high), colours="gray"),
            pictures.draw(contrast, "minus plain averaging", colours="RdBu_r", limits=(-CONTRAST, CONTRAST), note=note),
        ),
        answers.reason,
        how=f"pooled {_times(times)}" + (f"; training drew {drawn}" if drawn else ""),
    )


def _pool_in_training(plan: Recipe, layer: nn.Module, x: Tensor, channel: int, times: int) -> Strip:
    """What the layer draws in training; the model's own layer and the random state stay as they are."""
    layer = copy.deepcopy(layer).train()
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(plan.seed)
        drawn = [in_torch(layer, x, times)[0, channel] for _ in range(DRAWS)]
    return Strip(
        "In training",
        f"The layer draws at random in training: {DRAWS} passes over the photograph, in torch.",
        tuple(pictures.draw(y, f"pass {n}", colours="gray", limits=_brightness(y)) for n, y in enumerate(drawn, 1)),
    )


def _head_on_digit(layer: nn.Module, path: Path, digit: Tensor, features: Tensor) -> Strip:
    answers = ask(layer, path, features)
    ours, theirs = answers.torch[0].ravel(), answers.runtime[0].ravel()
    maps = pictures.mosaic(features[0].numpy(), pictures.columns_of(features.shape[1]))
    return Strip(
        "All feature maps",
        f"A handwritten {SHOWN_DIGIT}, the {features.shape[1]} channels that it becomes, and the {ours.size} numbers "
        "that the pooling makes of them.",
        (_digit(digit), pictures.draw(maps, "feature maps"), *_compared(_grid(ours), _grid(theirs))),
        answers.reason,
    )


def _head_on_photograph(plan: Recipe, folder: Path) -> Strip:
    """A new layer for three channels: red, green and blue."""
    x = photograph(colour=True)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(plan.seed)
        layer = plan.layer(x.shape[1]).eval()
    path = folder / "colour.onnx"
    poolexport.export(layer, x[:, :, :16, :16].repeat(2, 1, 1, 1), path, dynamic_shapes=plan.task.axes[0], force=True)
    answers = ask(layer, path, x)
    ours, theirs = answers.torch[0].ravel(), answers.runtime[0].ravel()
    as_colour = ours.size == x.shape[1] and ours.min() >= 0 and ours.max() <= 1
    drawn = [values.reshape(1, 1, 3) if as_colour else _grid(values) for values in (ours, theirs)]
    made = "one colour" if as_colour else f"{ours.size} numbers"
    return Strip(
        "A photograph",
        "Red, green and blue as the three channels of a new layer, of a size that the export never saw; the pooling "
        f"leaves {made}.",
        (pictures.draw(x[0].permute(1, 2, 0).numpy(), "photograph"), *_compared(*drawn)),
        answers.reason,
        how=f"{made}, by a new layer for three channels",
    )


def _scene(model: nn.Module, folder: Path) -> Strip:
    """One scene: its regions, and the boxes that torch and onnxruntime make of those that show a digit."""
    test = scenes()[1]
    rois = test.rois(torch.tensor([SHOWN_SCENE]))
    image, regions = test.images[SHOWN_SCENE : SHOWN_SCENE + 1], rois[:, 1:]
    scores, shifts = ask_all(model, folder / "function", image, rois)
    drawn = [_outlined(image, regions)]
    for answer, shift in ((scores.torch, shifts.torch), (scores.runtime, shifts.runtime)):
        found = torch.from_numpy(answer.argmax(1)) != BACKGROUND
        drawn.append(_outlined(image, boxes(regions, torch.from_numpy(shift))[found]))
    proposed, ours, theirs = drawn
    read = scores.runtime.argmax(1)
    right = int((read == test.labels[SHOWN_SCENE].numpy()).sum())
    named = ", ".join(str(label) for label in sorted(read) if label != BACKGROUND)
    return Strip(
        "A scene",
        f"{len(regions)} regions proposed in a scene of several digits, and a box for each that is found to show one. "
        f"{right} of the {len(regions)} classes are right; the digits read are {named}.",
        (
            pictures.draw(image[0, 0].numpy(), "scene", colours="gray_r", limits=(0, 1)),
            pictures.draw(proposed, "regions", colours="gray_r", limits=(0, 1)),
            *_compared(ours, theirs, limits=(0, 1), colours="gray_r"),
        ),
        scores.reason or shifts.reason,
    )


def _outlined(image: Tensor, corners: Tensor) -> np.ndarray:
    """A pale picture with the outlines of boxes, several pixels for each of the image's."""
    drawn = image[0, 0].repeat_interleave(ZOOM, 0).repeat_interleave(ZOOM, 1).numpy() / 2
    rows, columns = drawn.shape
    for x1, y1, x2, y2 in (ZOOM * corners).round().int().tolist():
        top, bottom = np.clip([y1, y2], 0, rows - 1)
        left, right = np.clip([x1, x2], 0, columns - 1)
        drawn[[top, bottom], left : right + 1] = 1.0
        drawn[top : bottom + 1, [left, right]] = 1.0
    return drawn


def original() -> Picture:
    return pictures.draw(photograph()[0, 0].numpy(), "photograph", colours="gray", limits=(0, 1))


def _digit(digit: Tensor) -> Picture:
    return pictures.draw(digit[0, 0].numpy(), "digit", colours="gray_r", limits=(0, 1))


def _brightness(pooled: np.ndarray) -> tuple[float, float]:
    """The values that black and white stand for: those of the photograph, unless the pooling leaves them."""
    return min(0.0, float(pooled.min())), max(1.0, float(pooled.max()))


def _compared(
    ours: np.ndarray,
    theirs: np.ndarray,
    *,
    limits: tuple[float, float] | None = None,
    colours: pictures.Colours = "viridis",
) -> tuple[Picture, Picture, Picture]:
    limits = limits or (float(ours.min()), float(ours.max()))
    return (
        pictures.draw(ours, "torch", colours=colours, limits=limits),
        pictures.draw(theirs, RUNTIME, colours=colours, limits=limits),
        pictures.difference(ours, theirs, "difference"),
    )


def _grid(values: np.ndarray) -> np.ndarray:
    return pictures.mosaic(values.reshape(-1, 1, 1), pictures.columns_of(values.size))


def _rescaled(low: float, high: float) -> str:
    """What black and white stand for, where the pooling leaves the values of a photograph."""
    if (low, high) == (0.0, 1.0):
        return ""
    return (
        f" The answers leave the range from 0 to 1, so black stands for {low:.2f} and white for {high:.2f}; they are "
        "brought to that range before plain averaging is subtracted."
    )


def _clipped(contrast: np.ndarray) -> str:
    return f", full colour from {CONTRAST:.2f}" if np.abs(contrast).max() > CONTRAST else ""


def _drawn(layer: nn.Module, channel: int) -> str:
    """How often each choice fell in training, for a layer that counts its draws in buffers named ``*_count``."""
    counts = {name.removesuffix("_count"): b for name, b in layer.named_buffers() if name.endswith("_count")}
    # A single count is that of every channel.
    told = (f"{name} {int(count.flatten()[channel % count.numel()])} times" for name, count in counts.items())
    return " and ".join(told)


def _times(count: int) -> str:
    return {1: "once", 2: "twice"}.get(count, f"{count} times")
