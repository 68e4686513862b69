"""Every method from its checkpoint to onnxruntime: exported twice, proven, run on all test digits, drawn on a page.

A row is the evidence for one method. It passes where both files were proven equal to the model (dynamic N, H and W) and
predict, for every test digit, the class that torch predicts, and where every answer to a digit and every picture is
right by the rule of ``poolexport.tolerance``.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from poolexport import catalog
from poolexport.errors import OutputError, PoolExportError
from poolexport.report.page import TEMPLATES
from poolexport_models.evidence import FORMS, Form, Row, accuracy_of, form_of
from poolexport_models.extras import PACKAGES, require
from poolexport_models.pictures import Picture
from poolexport_models.recipes import Recipe, load, recipe, recipes
from poolexport_models.strips import REPEATS, RUNTIME, Strip, layer_in, original, pooled_photograph, strips_of
from poolexport_models.tasks import answers_of

__all__ = ["PAGE", "ROWS", "Form", "Row", "main", "page", "pooled_photograph"]

#: Called with (what is being done, steps done, steps in all).
Progress = Callable[[str, int, int], None]

PAGE = "index.html"
ROWS = "rows.json"
MODELS = "models"
STEPS = ("testing in torch", *(f"exporting, {form} form" for form in FORMS), "drawing")
#: Pictures this wide are shown smoothly; cells of narrower ones are shown as squares.
LARGE = 160


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
        return {
            "pool": "down-sampling between the convolutions",
            "head": "head before the classifier",
            "streams": "head that pools the maps of several convolutions",
            "regions": "pooling of the regions of a scene of digits",
        }[self.row.hole]

    @property
    def pooled(self) -> tuple[Picture, str] | None:
        """What onnxruntime made of the photograph, and how it was pooled."""
        found = ((p, strip.how) for strip in self.strips if strip.how for p in strip.pictures if p.title == RUNTIME)
        return next(found, None)

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
        OutputError: something cannot be written, or is there already and ``force`` is not set.
    """
    for package in PACKAGES:
        require(package, "the demonstration")
    plans = [recipe(name) for name in dict.fromkeys(only or recipes())]
    models = [load(plan.method) for plan in plans]
    folders = [output / MODELS / plan.method for plan in plans]
    _claim(output, folders, force=force)
    report = progress or (lambda *_: None)
    total = len(plans) * len(STEPS)
    sections = []
    for count, (plan, model, folder) in enumerate(zip(plans, models, folders)):

        def step(number: int, plan: Recipe = plan, before: int = count * len(STEPS)) -> None:
            report(f"{plan.method}: {STEPS[number]}", before + number, total)

        sections.append(_section(plan, model, folder, step))
    rows = [section.row for section in sections]
    _write(output / PAGE, page(sections))
    _write(output / ROWS, json.dumps([row.to_dict() for row in rows], indent=2) + "\n")
    report("done", total, total)
    return rows


def page(sections: Sequence[Section]) -> str:
    """The page, whole: no other file and no network is needed to read it."""
    jinja = require("jinja2", "writing the page")
    rows = [section.row for section in sections]
    environment = jinja.Environment(
        loader=jinja.FileSystemLoader([Path(__file__).parent, TEMPLATES]),
        autoescape=True,
        undefined=jinja.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    unpooled = original()
    drawn = [unpooled, *(picture for section in sections for strip in section.strips for picture in strip.pictures)]
    # The page holds a large picture once, however often it shows it.
    shared = {picture.uri: picture for picture in drawn if picture.width >= LARGE}
    return environment.get_template("demo.html.jinja").render(
        sections=sections,
        photograph=unpooled,
        repeats=REPEATS,
        shared=shared,
        names={uri: f"picture{number}" for number, uri in enumerate(shared)},
        tested=tested(rows),
        passed=sum(row.passed for row in rows),
        failures=[failure for row in rows for failure in row.failures],
        versions={name: importlib.metadata.version(name) for name in ("poolexport", "torch", "onnx", "onnxruntime")},
    )


def tested(rows: Sequence[Row]) -> str:
    """What the networks were tested on, counted."""
    counts = {row.things: row.images for row in rows}
    words = {"digits": "handwritten digits", "regions": "regions of scenes of digits"}
    return " and ".join(f"{count} {words[things]}" for things, count in counts.items()) + " that no training saw"


def _claim(output: Path, folders: Sequence[Path], *, force: bool) -> None:
    """Make the folders, unless an earlier run left something there."""
    taken = [file for file in (output / PAGE, output / ROWS) if file.exists()]
    taken += [folder for folder in folders if folder.is_file() or (folder.is_dir() and any(folder.iterdir()))]
    if taken and not force:
        names = ", ".join(str(path.relative_to(output)) for path in taken)
        raise OutputError(f"{output} holds {names}; choose another folder, or replace it with --force (force=True)")
    for folder in (output, *folders):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"the folder {folder} cannot be made: {error.strerror}") from error


def _write(file: Path, text: str) -> None:
    """Write a file whole or not at all."""
    unfinished = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(file)
    except OSError as error:
        raise OutputError(f"{file} could not be written: {error.strerror}") from error
    finally:
        unfinished.unlink(missing_ok=True)


def _section(plan: Recipe, model: nn.Module, folder: Path, step: Callable[[int], None]) -> Section:
    started = time.perf_counter()
    task = plan.task
    inputs, labels = task.test()
    step(0)
    with torch.no_grad():
        accuracy = accuracy_of(answers_of(model, inputs)[0].numpy(), labels)
    forms = []
    for number, name in enumerate(FORMS, 1):
        step(number)
        forms.append(form_of(name, task, model, folder))
    step(len(FORMS) + 1)
    strips: tuple[Strip, ...] = ()
    try:
        strips = strips_of(plan, model, folder)
        wrong = [f"{strip.title.lower()}: {strip.reason}" for strip in strips if strip.reason]
    except OutputError:
        raise
    except PoolExportError as error:
        wrong = [str(error)]
    method = catalog.methods()[plan.method]
    layer = layer_in(plan, model)
    row = Row(
        method=plan.method,
        network=plan.network.__name__,
        hole=plan.hole,
        images=len(labels),
        things=task.things,
        accuracy=accuracy,
        forms=tuple(forms),
        seconds=time.perf_counter() - started,
        reason=f"the layer by itself: {'; '.join(wrong)}" if wrong else "",
    )
    paper = method.paper
    return Section(
        row=row,
        summary=method.summary,
        training=method.training,
        inference=method.inference_rule(layer) if method.random else method.inference,
        # Where there is no address, the link is a conference with its year.
        paper=f"{paper.authors}: {paper.title}" + ("" if paper.link.endswith(f" {paper.year}") else f", {paper.year}"),
        link=paper.link,
        strips=strips,
    )
