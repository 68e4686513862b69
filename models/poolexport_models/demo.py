"""Every method from its checkpoint to onnxruntime: exported twice, proven, run on all test digits, drawn on a page.

A row is the evidence for one method. It passes where both files were proven equal to the model (dynamic N, H and W) and
predict, for every test digit, the class that torch predicts.
"""

from __future__ import annotations

import copy
import importlib.metadata
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import poolexport
from poolexport import catalog
from poolexport.errors import OutputError, PoolExportError
from poolexport_models import pictures
from poolexport_models.data import digits, photograph
from poolexport_models.extras import PACKAGES, require
from poolexport_models.pictures import Picture
from poolexport_models.recipes import Recipe, load, recipe, recipes

#: Called with (what is being done, steps done, steps in all).
Progress = Callable[[str, int, int], None]

PAGE = "index.html"
ROWS = "rows.json"
AXES = {0: "N", 2: "H", 3: "W"}
#: The two ways to write a file, and whether it holds standard operators only.
FORMS = {"function": False, "inlined": True}
STEPS = ("testing in torch", *(f"exporting, {form} form" for form in FORMS), "drawing")
RUNTIME = "onnxruntime"
#: The class of the digit whose feature maps are drawn.
SHOWN_DIGIT = 0
#: The photograph is pooled again until its sides are at most this share of what they were ...
SHRINK = 1 / 8
#: ... but never more often than this.
REPEATS = 4
#: Passes over the photograph that are drawn of a layer that is random in training.
DRAWS = 5
#: Pictures this wide are shown smoothly; cells of narrower ones are shown as squares.
LARGE = 160
#: Brightness that is the strongest red or blue where a pooled photograph is compared with plain averaging.
CONTRAST = 0.3


@dataclass(frozen=True)
class Form:
    """One exported file, and what onnxruntime made of the test digits with it.

    Args:
        name: "function" or "inlined".
        verdict: "PASS" or "FAIL", of the verification that is part of every export.
        checks: comparisons it made.
        accuracy: share of right predictions of the file.
        differing: test digits for which the file predicts another class than torch.
        largest: largest distance between two answers, over all digits and classes.
        reason: why it failed; empty where it passed.
    """

    name: str
    verdict: str
    checks: int = 0
    accuracy: float | None = None
    differing: int | None = None
    largest: float | None = None
    reason: str = ""

    @property
    def passed(self) -> bool:
        return self.verdict == "PASS" and self.differing == 0 and not self.reason


@dataclass(frozen=True)
class Row:
    """The evidence for one method.

    Args:
        method: name in the catalogue.
        network: class name of the trained network.
        hole: where the method's layer is: "pool" or "head".
        images: test digits.
        accuracy: share of right predictions of the model in torch.
        forms: the two files.
        seconds: for everything, pictures included.
        reason: why it failed outside of a form; empty where it did not.
    """

    method: str
    network: str
    hole: str
    images: int
    accuracy: float
    forms: tuple[Form, ...]
    seconds: float
    reason: str = ""

    @property
    def passed(self) -> bool:
        return not self.reason and all(form.passed for form in self.forms)

    @property
    def failures(self) -> list[str]:
        """A sentence for everything that did not pass."""
        told = [f"{self.method}, {form.name} form: {form.reason}" for form in self.forms if not form.passed]
        return ([f"{self.method}: {self.reason}"] if self.reason else []) + told

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"passed": self.passed, **asdict(self)}


@dataclass(frozen=True)
class Strip:
    """A row of pictures: an input, what the pooling makes of it in torch and in onnxruntime, how far they are apart."""

    title: str
    text: str
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class Section:
    """What the page says about one method."""

    row: Row
    summary: str
    training: str
    inference: str
    paper: str
    link: str
    strips: tuple[Strip, ...]

    @property
    def place(self) -> str:
        """Where in the network the method's layer is."""
        return {"pool": "down-sampling between the convolutions", "head": "head before the classifier"}[self.row.hole]

    @property
    def pooled(self) -> Picture | None:
        """What onnxruntime made of the photograph."""
        return next((p for strip in self.strips[1:] for p in strip.pictures if p.title == RUNTIME), None)

    @property
    def url(self) -> str:
        """Where the paper is; empty where its identifier is no address."""
        kind, _, name = self.link.partition(":")
        known = {"arXiv": "https://arxiv.org/abs/", "doi": "https://doi.org/"}
        return known[kind] + name.strip() if kind in known else self.link if kind == "https" else ""


def main(
    output: Path, *, only: Sequence[str] | None = None, force: bool = False, progress: Progress | None = None
) -> list[Row]:
    """Take every method from its checkpoint to onnxruntime and write a page about it.

    Args:
        output: folder for ``index.html``, ``rows.json`` and the exported files.
        only: these methods; all by default.
        force: replace what an earlier run left there.
        progress: called with (step, steps done, steps in all).

    Returns:
        A row per method; one that does not pass says so, it does not raise.

    Raises:
        InputError: there is no such method, or its checkpoint is not the one that was trained.
        MissingExtraError: a package that only the demonstration needs is not installed.
        OutputError: the folder cannot be written, or holds a page and ``force`` is not set.
    """
    for package in PACKAGES:
        require(package, "the demonstration")
    plans = [recipe(name) for name in only or recipes()]
    models = [load(plan.method) for plan in plans]
    _claim(output, force=force)
    report = progress or (lambda *_: None)
    total = len(plans) * len(STEPS)
    sections = []
    for count, (plan, model) in enumerate(zip(plans, models)):

        def step(number: int, plan: Recipe = plan, before: int = count * len(STEPS)) -> None:
            report(f"{plan.method}: {STEPS[number]}", before + number, total)

        sections.append(_section(plan, model, output / "models" / plan.method, step))
    rows = [section.row for section in sections]
    (output / ROWS).write_text(json.dumps([row.to_dict() for row in rows], indent=2) + "\n")
    (output / PAGE).write_text(page(sections), encoding="utf-8")
    report("done", total, total)
    return rows


def page(sections: Sequence[Section]) -> str:
    """The page, whole: no other file and no network is needed to read it."""
    jinja = require("jinja2", "writing the page")
    environment = jinja.Environment(
        loader=jinja.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    before = _photograph()
    drawn = [before, *(picture for section in sections for strip in section.strips for picture in strip.pictures)]
    # The page holds a large picture once, however often it shows it.
    shared = {picture.uri: picture for picture in drawn if picture.width >= LARGE}
    return environment.get_template("demo.html.jinja").render(
        sections=sections,
        photograph=before,
        shared=shared,
        names={uri: f"picture{number}" for number, uri in enumerate(shared)},
        images=sections[0].row.images,
        passed=sum(section.row.passed for section in sections),
        failures=[failure for section in sections for failure in section.row.failures],
        versions={name: importlib.metadata.version(name) for name in ("poolexport", "torch", "onnx", "onnxruntime")},
    )


def _claim(output: Path, *, force: bool) -> None:
    if (output / PAGE).exists() and not force:
        raise OutputError(f"{output} holds a page; choose another folder, or replace it with --force (force=True)")
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"the folder {output} cannot be made: {error.strerror}") from error


def _section(plan: Recipe, model: nn.Module, folder: Path, step: Callable[[int], None]) -> Section:
    started = time.perf_counter()
    folder.mkdir(parents=True, exist_ok=True)
    data = digits()
    step(0)
    with torch.no_grad():
        answers = model(data.test_images)
    forms = []
    for number, name in enumerate(FORMS, 1):
        step(number)
        forms.append(_form(name, model, answers, folder))
    step(len(FORMS) + 1)
    strips: tuple[Strip, ...] = ()
    reason = ""
    try:
        strips = _strips(plan, model, folder)
    except PoolExportError as error:
        reason = f"the layer by itself: {error}"
    method = catalog.methods()[plan.method]
    layer = _layer(plan, model)
    row = Row(
        method=plan.method,
        network=plan.network.__name__,
        hole=plan.hole,
        images=len(data.test_labels),
        accuracy=_accuracy(answers.numpy()),
        forms=tuple(forms),
        seconds=time.perf_counter() - started,
        reason=reason,
    )
    paper = method.paper
    return Section(
        row=row,
        summary=method.summary,
        training=method.training,
        inference=method.inference_rule(layer) if method.random else method.inference,
        paper=f"{paper.authors}: {paper.title}, {paper.year}",
        link=paper.link,
        strips=strips,
    )


def _form(name: str, model: nn.Module, answers: Tensor, folder: Path) -> Form:
    """Export one form, run all test digits through the file, and compare with torch's answers."""
    data = digits()
    try:
        bundle = poolexport.export(
            model, data.test_images[:2], folder / name, dynamic_shapes=AXES, portable=FORMS[name], force=True
        )
        found = _run(bundle.path, data.test_images)
    except PoolExportError as error:
        return Form(name, "FAIL", reason=str(error))
    expected = answers.numpy()
    differing = int((found.argmax(1) != expected.argmax(1)).sum())
    return Form(
        name,
        bundle.manifest.verdict,
        checks=bundle.manifest.checks,
        accuracy=_accuracy(found),
        differing=differing,
        largest=float(np.abs(found - expected).max()),
        reason=f"{differing} of {len(expected)} predictions differ from torch" if differing else "",
    )


def _accuracy(answers: np.ndarray) -> float:
    return float((answers.argmax(1) == digits().test_labels.numpy()).mean())


def _run(path: Path, x: Tensor) -> np.ndarray:
    """What onnxruntime answers to one input."""
    session = poolexport.session(path)
    result: np.ndarray = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    return result


def _layer(plan: Recipe, model: nn.Module) -> nn.Module:
    """The method's layer in a network; the first of two where the hole is between convolutions."""
    return model.get_submodule("pool1" if plan.hole == "pool" else "head")


def _strips(plan: Recipe, model: nn.Module, folder: Path) -> tuple[Strip, ...]:
    """The trained layer by itself, on a feature map of a digit and on the photograph."""
    layer = _layer(plan, model)
    data = digits()
    digit = data.test_images[data.test_labels == SHOWN_DIGIT][:1]
    features = _features(model, layer, digit)
    path = folder / "layer.onnx"
    poolexport.export(layer, features.repeat(2, 1, 1, 1), path, dynamic_shapes=AXES, force=True)
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


def pooled_photograph(method: str) -> np.ndarray | None:
    """What the trained layer of a method makes of the photograph, (H, W); None where it leaves no map to look at."""
    plan = recipe(method)
    if plan.hole == "head":
        return None
    model = load(method)
    layer = _layer(plan, model)
    channels = _features(model, layer, digits().test_images[:1]).shape[1]
    return _repeated(layer, *_photograph_for(layer, channels))[0, 0]


def _photograph_for(layer: nn.Module, channels: int) -> tuple[Tensor, int]:
    """The photograph as every channel of a layer's input, and how often to pool it."""
    x = photograph().expand(1, channels, -1, -1).contiguous()
    shrunk = (n for n in range(1, REPEATS) if _repeated(layer, x, n).shape[-1] <= SHRINK * x.shape[-1])
    return x, next(shrunk, REPEATS)


def _features(model: nn.Module, layer: nn.Module, x: Tensor) -> Tensor:
    """What reaches a layer of the model when the model sees ``x``."""
    seen: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        with torch.no_grad():
            model(x)
    finally:
        hook.remove()
    return seen[0]


def _most_alike(features: Tensor, digit: Tensor) -> int:
    """The channel in which a reader recognises the digit best."""
    maps = torch.cat([digit[0], features[0]]).flatten(1)
    return int(torch.corrcoef(maps)[0, 1:].nan_to_num(-1).argmax())


def _pool_on_digit(layer: nn.Module, path: Path, digit: Tensor, features: Tensor, channel: int) -> Strip:
    ours, theirs = _repeated(layer, features, 1)[0, channel], _run(path, features)[0, channel]
    return Strip(
        "A feature map",
        f"A handwritten {SHOWN_DIGIT}, channel {channel} of what the network makes of it, and that channel after the "
        "first pooling.",
        (_digit(digit), pictures.draw(features[0, channel].numpy(), "feature map"), *_compared(ours, theirs)),
    )


def _pool_on_photograph(layer: nn.Module, path: Path, x: Tensor, channel: int, times: int) -> Strip:
    """The photograph as every channel of the trained layer's input, pooled several times."""
    ours = _repeated(layer, x, times)[0, channel]
    theirs = x.numpy()
    for _ in range(times):
        theirs = _run(path, torch.from_numpy(theirs))
    averaged = F.adaptive_avg_pool2d(x[0, channel][None, None], ours.shape)[0, 0].numpy()
    low, high = _brightness(ours)
    contrast = (theirs[0, channel] - low) / (high - low) - averaged
    return Strip(
        "A photograph",
        f"The same layer, applied {_times(times)} to a photograph: a size that the export never saw.",
        (
            _photograph(),
            *_compared(ours, theirs[0, channel], limits=(low, high), colours="gray"),
            pictures.draw(contrast, "minus plain averaging", colours="RdBu_r", limits=(-CONTRAST, CONTRAST)),
        ),
    )


def _pool_in_training(plan: Recipe, layer: nn.Module, x: Tensor, channel: int, times: int) -> Strip:
    """What the layer draws in training; the model's own layer and the random state stay as they are."""
    layer = copy.deepcopy(layer).train()
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(plan.seed)
        drawn = [_repeated(layer, x, times)[0, channel] for _ in range(DRAWS)]
    return Strip(
        "In training",
        f"The layer draws at random in training: {DRAWS} passes over the photograph, in torch.",
        tuple(pictures.draw(y, f"pass {n}", colours="gray", limits=_brightness(y)) for n, y in enumerate(drawn, 1)),
    )


def _head_on_digit(layer: nn.Module, path: Path, digit: Tensor, features: Tensor) -> Strip:
    ours, theirs = _repeated(layer, features, 1)[0].ravel(), _run(path, features)[0].ravel()
    maps = pictures.mosaic(features[0].numpy(), pictures.columns_of(features.shape[1]))
    return Strip(
        "All feature maps",
        f"A handwritten {SHOWN_DIGIT}, the {features.shape[1]} channels that it becomes, and the {ours.size} numbers "
        "that the pooling makes of them.",
        (_digit(digit), pictures.draw(maps, "feature maps"), *_compared(_grid(ours), _grid(theirs))),
    )


def _head_on_photograph(plan: Recipe, folder: Path) -> Strip:
    """A layer of its own for three channels: red, green and blue."""
    x = photograph(colour=True)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(plan.seed)
        layer = plan.layer(x.shape[1]).eval()
    path = folder / "colour.onnx"
    poolexport.export(layer, x[:, :, :16, :16].repeat(2, 1, 1, 1), path, dynamic_shapes=AXES, force=True)
    ours, theirs = _repeated(layer, x, 1)[0].ravel(), _run(path, x)[0].ravel()
    as_colour = ours.size == x.shape[1] and ours.min() >= 0 and ours.max() <= 1
    drawn = [values.reshape(1, 1, 3) if as_colour else _grid(values) for values in (ours, theirs)]
    made = "one colour" if as_colour else f"{ours.size} numbers"
    return Strip(
        "A photograph",
        f"Red, green and blue as three channels, of a size that the export never saw; the pooling leaves {made}.",
        (pictures.draw(x[0].permute(1, 2, 0).numpy(), "photograph"), *_compared(*drawn)),
    )


def _photograph() -> Picture:
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


def _repeated(layer: nn.Module, x: Tensor, times: int) -> np.ndarray:
    """What a layer makes of ``x`` in torch when it is applied several times."""
    with torch.no_grad():
        for _ in range(times):
            x = layer(x)
    return x.numpy()


def _times(count: int) -> str:
    return {1: "once", 2: "twice"}.get(count, f"{count} times")
