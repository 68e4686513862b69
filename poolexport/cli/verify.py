"""``poolexport verify``: does a file compute what a model, or another file, computes?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from poolexport.cli import _culprits, _graph, _inputs, _model, _picture, _progress, _report, _show, _verdict
from poolexport.errors import InputError, OutputError, ParityError

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch
    from torch import nn

    from poolexport.offline import Picture
    from poolexport.pipeline.verify import Given, Verdict

#: Element types that inputs can be made up for.
FLOATS = {"FLOAT": "float32", "FLOAT16": "float16", "DOUBLE": "float64"}


@click.command()
@click.argument("path")
@click.argument("model")
@_model.weights_option
@click.option(
    "--input",
    "inputs",
    multiple=True,
    metavar="[NAME=]SHAPE",
    help="Shape, as in 1x3x32x32; once per input. Only for files that poolexport did not write.",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    metavar="INTEGER",
    default=0,
    show_default=True,
    help="Of the values tried; the same seed, the same verdict.",
)
@click.option(
    "--data",
    multiple=True,
    metavar="PATH",
    type=click.Path(path_type=Path),
    help="Inputs that the model will meet, to be tried as well: .npy, .npz, images, or a folder of them.",
)
@_picture.options
@click.option("--strict", is_flag=True, help="Let answers to NaN and infinities count; else they are only told.")
@click.option("--no-extremes", is_flag=True, help="Leave out huge, tiny, infinite and NaN values.")
@click.option("--factor", type=float, help="How many times farther from the truth than torch the file may be.")
@click.option("--rtol", type=float, help="With --atol, replaces that rule: error <= atol + rtol * scale.")
@click.option("--atol", type=float, help="See --rtol.")
@click.option(
    "--runtimes",
    metavar="NAME,...",
    default="",
    help="Run it with others as well: releases of onnxruntime, as 1.25 or newest, reference, openvino, or installed.",
)
@click.option(
    "--budget",
    type=click.FloatRange(0),
    metavar="SECONDS",
    help="Begin no further check after so long; what is left out is told.",
)
@click.option(
    "--resume",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Keep every check in FILE as it is made, and go on from those that are there.",
)
@click.option("--no-locate", is_flag=True, help="Where the numbers differ, do not look for the layers to blame.")
@click.option(
    "--witness",
    metavar="FILE.npz",
    type=click.Path(path_type=Path),
    help="Where the numbers differ, the smallest input that shows it, with a script that needs no poolexport.",
)
@_report.options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document with every check.")
def verify(
    path: str,
    model: str,
    weights: Path | None,
    inputs: tuple[str, ...],
    seed: int,
    data: tuple[Path, ...],
    strict: bool,
    no_extremes: bool,
    factor: float | None,
    rtol: float | None,
    atol: float | None,
    runtimes: str,
    budget: float | None,
    resume: Path | None,
    no_locate: bool,
    witness: Path | None,
    reports: tuple[Path, ...],
    against: Path | None,
    worse_by: float,
    force: bool,
    as_json: bool,
    **pixels: Any,
) -> None:
    """Compare a file with the model that it was made from, or with another file.

    PATH is a bundle or an .onnx file. MODEL is MODULE:FACTORY, or a bundle or an .onnx file, by whoever, whose answers
    are then the truth. Exit code 0 where every check passes, 1 where the numbers differ or, with --against, became
    worse.

    \b
    Example:
      poolexport verify build net.py:build --weights net.safetensors
      poolexport verify build net.py:build --report reports
      poolexport verify build net.py:build --runtimes 1.22,newest,reference
      poolexport verify optimised.onnx build
    """
    given = _inputs.parse(inputs)
    for name, bound in (("--factor", factor), ("--rtol", rtol), ("--atol", atol), ("--worse-by", worse_by)):
        if bound is not None and not 0 <= bound < float("inf"):
            raise InputError(f"{name} {bound} is not a bound; give a finite number of 0 or more")
    subject, standard = _artefacts(path, model)
    if weights is not None and isinstance(standard, Path):
        raise InputError(f"--weights are for a model of torch, and {standard} is a file with weights of its own")
    picture = _picture.picture(**pixels)
    from poolexport.proof.script import require_room
    from poolexport.report.data import Settings
    from poolexport.tolerance import FACTOR

    settings = Settings(
        seed,
        FACTOR if factor is None else factor,
        rtol,
        atol,
        not no_extremes,
        strict,
        tuple(map(str, data)),
        tuple(filter(None, (name.strip() for name in runtimes.split(",")))),
        budget,
    )
    report = _report.prepare(
        reports, against, worse_by, force, subject=subject, standard=standard, weights=weights, settings=settings
    )
    if witness is not None:
        if isinstance(standard, Path):
            raise InputError("--witness needs the model: of two files nobody can tell which is wrong")
        require_room(witness, force=force)
    blame = _Blame(not no_locate, witness, force)
    try:
        found = _verified(subject, standard, weights, given, (data, picture), report, blame, resume)
    except OutputError:
        raise
    except InputError as error:
        report.write(None, str(error))
        raise
    verdict, failed, explained = found.verdict, found.failed, found.explained
    report.write(verdict, str(failed or ""), explained.culprits, explained.witness)
    if not as_json:
        _verdict.show(verdict)
        explained.show()
        if failed is not None and weights is None and isinstance(standard, str):
            _show.out("The model has the weights that the factory gave it; for others, give --weights.")
        report.show()
    elif failed is None:
        told = {"path": str(subject), "weights": found.origin, **_show.verdict(verdict)}
        _show.document(told | ({"against": report.changes} if report.changes else {}))
    if failed is not None:
        raise failed
    if report.regressions:
        more = f" and {len(report.regressions) - 1} more" if len(report.regressions) > 1 else ""
        _show.error(f"worse than {against}: {report.regressions[0]['told']}{more}")
        click.get_current_context().exit(1)


@dataclass(frozen=True)
class _Blame:
    """What is to be found out where the numbers differ."""

    locate: bool
    witness: Path | None
    force: bool


@dataclass(frozen=True)
class _Found:
    """A verdict, where the weights of the model are from, the error that it is, and why."""

    verdict: Verdict
    origin: str
    failed: ParityError | None = None
    explained: _culprits.Explained = field(default_factory=_culprits.Explained)


def _artefacts(path: str, model: str) -> tuple[Path, str | Path]:
    """The file that is judged, and MODULE:FACTORY or the file that it is judged by, in whichever order they came.

    Raises:
        InputError: neither is a file.
    """
    first, second = (":" in word and not Path(word).exists() for word in (path, model))
    if first and second:
        raise InputError(f"{path} and {model} are both models of torch; export one of them, and compare the file")
    if first:
        return Path(model), path
    is_file = Path(model).exists() or model.endswith(".onnx")
    if not second and (not is_file or model.endswith(".py")):
        _model.split(model)
    return Path(path), model if second else Path(model)


def _verified(
    subject: Path,
    standard: str | Path,
    weights: Path | None,
    given: list[_inputs.Input],
    data: tuple[Sequence[Path], Picture],
    report: _report.Reports,
    blame: _Blame,
    resume: Path | None,
) -> _Found:
    """The verdict, and where the numbers differ, what there is to be said about it.

    Raises:
        InputError: the file cannot be read, or the two do not belong together.
    """
    graph = _graph.read(subject)
    other = _graph.read(standard) if isinstance(standard, Path) else None
    types = _types(graph)
    shapes = _shapes(graph, given, subject, other)
    with _progress.progress() as progress:
        import torch

        from poolexport import api
        from poolexport.proof.failing import Failing
        from poolexport.runtime import VARIANTS, runtimes

        # what was asked for comes before what is always tried, for the time may be over
        ways = [*runtimes(report.settings.runtimes, progress), *VARIANTS]
        dtypes = [getattr(torch, name) for name in types]
        model: nn.Module | Path
        if isinstance(standard, Path):
            model, origin = standard, ""
        else:
            loaded = _model.load(standard, weights, dtypes[0])
            model, origin = loaded.model, loaded.weights
        settings = report.settings
        failing = Failing(report.worst if report.targets else None)
        try:
            verdict = api.verify(
                subject,
                model,
                _inputs.draw(shapes, dtypes) if shapes else None,
                factor=settings.factor,
                rtol=settings.rtol,
                atol=settings.atol,
                seed=settings.seed,
                variants=ways,
                extremes=settings.extremes,
                strict=settings.strict,
                data=_data(subject, *data, telling=resume is not None),
                budget=settings.budget,
                resume=resume,
                progress=progress,
                watch=failing,
            )
        except ParityError as error:
            explained = _culprits.Explained()
            wished = blame.locate or blame.witness is not None
            if wished and failing.inputs and not isinstance(model, Path):
                progress("locate", 0, 1)
                explained = _culprits.explain(
                    subject, model, failing.inputs, settings, blame.witness, locating=blame.locate, force=blame.force
                )
            return _Found(error.verdict, origin, error, explained)
    return _Found(verdict, origin)


def _data(model: Path, paths: Sequence[Path], picture: Picture, *, telling: bool) -> list[Given]:
    """The files that are tried as well, each read when it is its turn; ``telling`` them from others of their names."""
    if not paths:
        return []
    import torch

    from poolexport import offline
    from poolexport.bundle import sha256
    from poolexport.pipeline.verify import Given
    from poolexport.runtime import plain_session

    ports = plain_session(model).get_inputs()

    def reader(item: offline.Item) -> Callable[[], list[torch.Tensor]]:
        return lambda: [torch.from_numpy(x.copy()) for x in offline.read(item, ports, picture).values()]

    return [
        Given(item.path.name, reader(item), f"{sha256(item.path)} {picture}" if telling else "")
        for item in offline.items(paths, model)
    ]


def _types(graph: ir.Model) -> list[str]:
    """torch's name of every input's type.

    Raises:
        InputError: an input of integers; nobody can tell which of them make sense. Or no input at all.
    """
    if not graph.graph.inputs:
        raise InputError("the file takes no input, so there is nothing to compare it on")
    for value in graph.graph.inputs:
        if value.dtype is None or value.dtype.name not in FLOATS:
            kind = value.dtype.name.lower() if value.dtype else "an unknown type"
            raise InputError(
                f"input {value.name!r} holds {kind}, which cannot be made up here; verify in Python, with "
                "poolexport.verify(path, model, args)"
            )
    return [FLOATS[value.dtype.name] for value in graph.graph.inputs if value.dtype is not None]


def _shapes(graph: ir.Model, given: list[_inputs.Input], path: Path, other: ir.Model | None) -> list[_inputs.Input]:
    """What to try the file on; nothing where the file itself, or the one that it is compared with, says it.

    Raises:
        InputError: neither says it and the user does not either, or a name is not in the file.
    """
    names = [str(value.name) for value in graph.graph.inputs]
    unknown = [entry.name for entry in given if entry.name and entry.name not in names]
    if unknown:
        raise InputError(f"{path} has no input {unknown[0]!r}{_show.near(unknown[0], names)}")
    known = [_graph.manifest(model, path) for model in (graph, other) if model is not None]
    if given or any(known):
        return sorted(given, key=lambda entry: names.index(entry.name)) if given and given[0].name else given
    fixed = [_graph.lengths(value) for value in graph.graph.inputs]
    if not all(shape is not None and all(isinstance(length, int) for length in shape) for shape in fixed):
        raise InputError(f"{path} does not say which shapes to try; give --input 1x3x32x32, once for each of {names}")
    return [_inputs.Input(tuple(int(length) for length in shape or ()), name) for name, shape in zip(names, fixed)]
