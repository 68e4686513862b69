"""``poolexport verify``: does a file compute what a model computes?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.text import Text

from poolexport.cli import _graph, _inputs, _model, _picture, _progress, _show
from poolexport.errors import InputError, ParityError

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch

    from poolexport.offline import Picture
    from poolexport.pipeline.verify import Check, Given, Verdict

#: Element types that inputs can be made up for.
FLOATS = {"FLOAT": "float32", "FLOAT16": "float16", "DOUBLE": "float64"}


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@_model.argument
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
@click.option("--factor", type=float, help="How many times farther from the float64 truth than torch the file may be.")
@click.option("--rtol", type=float, help="With --atol, replaces that rule: error <= atol + rtol * scale.")
@click.option("--atol", type=float, help="See --rtol.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document with every check.")
def verify(
    path: Path,
    factory: str,
    weights: Path | None,
    inputs: tuple[str, ...],
    seed: int,
    data: tuple[Path, ...],
    strict: bool,
    no_extremes: bool,
    factor: float | None,
    rtol: float | None,
    atol: float | None,
    as_json: bool,
    **pixels: Any,
) -> None:
    """Compare a file with the model that it was made from.

    PATH is a bundle or an .onnx file. Exit code 0 where every check passes, 1 where the numbers differ.

    \b
    Example:
      poolexport verify build net.py:build --weights net.safetensors
    """
    given = _inputs.parse(inputs)
    for name, bound in (("--factor", factor), ("--rtol", rtol), ("--atol", atol)):
        if bound is not None and not 0 <= bound < float("inf"):
            raise InputError(f"{name} {bound} is not a bound; give a finite number of 0 or more")
    graph = _graph.read(path)
    picture = _picture.picture(**pixels)
    types = _types(graph)
    shapes = _shapes(graph, given, path)
    failed: ParityError | None = None
    with _progress.progress() as progress:
        import torch

        from poolexport import api
        from poolexport.runtime import VARIANTS
        from poolexport.tolerance import FACTOR

        dtypes = [getattr(torch, name) for name in types]
        loaded = _model.load(factory, weights, dtypes[0])
        try:
            verdict = api.verify(
                path,
                loaded.model,
                _inputs.draw(shapes, dtypes) if shapes else None,
                factor=FACTOR if factor is None else factor,
                rtol=rtol,
                atol=atol,
                seed=seed,
                variants=VARIANTS,
                extremes=not no_extremes,
                strict=strict,
                data=_data(path, data, picture),
                progress=progress,
            )
        except ParityError as error:
            verdict, failed = error.verdict, error
    if not as_json:
        report(verdict)
        if failed is not None and weights is None:
            _show.out("The model has the weights that the factory gave it; for others, give --weights.")
    elif failed is None:
        _show.document({"path": str(path), "weights": loaded.weights, **_show.verdict(verdict)})
    if failed is not None:
        raise failed


def _data(model: Path, paths: Sequence[Path], picture: Picture) -> list[Given]:
    """The files that are tried as well, each read when it is its turn."""
    if not paths:
        return []
    import torch

    from poolexport import offline
    from poolexport.pipeline.verify import Given
    from poolexport.runtime import session

    ports = session(model).get_inputs()

    def reader(item: offline.Item) -> Callable[[], list[torch.Tensor]]:
        return lambda: [torch.from_numpy(x.copy()) for x in offline.read(item, ports, picture).values()]

    return [Given(item.path.name, reader(item)) for item in offline.items(paths, model)]


def report(verdict: Verdict) -> None:
    """Failures with their reasons, then every group of checks."""
    alike: dict[str, list[Check]] = {}
    for check in verdict.failures:
        alike.setdefault("; ".join(j.reason for j in check.judgements if j.reason), []).append(check)
    for checks in list(alike.values())[:5]:
        others = f" (and {len(checks) - 1} more like it)" if len(checks) > 1 else ""
        _show.out(Text.assemble(_show.word("FAIL"), f"  {checks[0].reason}{others}"))
    if len(alike) > 5:
        _show.out(f"... and {len(alike) - 5} more (--json lists every check)")
    if alike:
        _show.out("")
    headers = ("values", "sizes", "checks", "worst error", "bound", "")
    lines = [group_row(key, checks) for key, checks in groups(verdict).items()]
    _show.out(_show.table(headers, lines, right=("checks", "worst error", "bound")))
    skipped = f", {len(verdict.skipped)} sizes skipped because the model itself refuses them" if verdict.skipped else ""
    failures = f", {len(verdict.failures)} failed" if verdict.failures else ""
    if verdict.remarks:
        told = _show.listed([check.values for check in verdict.remarks])
        _show.out(f"answers otherwise than torch to {told} inputs, as runtimes do; --strict makes that a failure")
    if verdict.random:
        _show.out(f"not compared, because they are random: {_show.listed(verdict.random)}; only shapes and types were")
    counted = f"  {len(verdict.checks)} checks{failures}{skipped}; errors are relative, {verdict.truth} is the truth"
    _show.out(f"{verdict.grade}: {_measure(verdict)}")
    _show.out(Text.assemble(_show.word(verdict.word), counted))


def _measure(verdict: Verdict) -> str:
    """How far off the file is, in numbers that mean something to people."""
    counted = [check for check in verdict.checks if check.counts]
    found = [judgement for check in counted for judgement in check.judgements if judgement.finite]
    if not found:
        return "nothing was compared"
    worst = max(found, key=lambda judgement: judgement.ulps)
    equal = sum(judgement.equal for judgement in found) / len(found)
    parts = [
        f"at most {_show.number(worst.ulps)} units in the last place of the largest answer",
        f"{equal:.1%} of the values are torch's to the last bit",
    ]
    agreed = [judgement.agree for judgement in found if judgement.agree is not None]
    if agreed:
        where = "everywhere" if min(agreed) == 1 else f"in {min(agreed):.1%} at worst"
        parts.append(f"the largest entry agrees {where}")
    stray = sum(judgement.stray for judgement in found)
    if stray:
        parts.append(f"{stray} values are NaN or infinite in the wrong places")
    return "; ".join(parts)


def groups(verdict: Verdict) -> dict[tuple[str, str], list[Check]]:
    """The checks by values and sizes, or by the way of running the file; groups with a failure first."""
    traced = verdict.checks[0].shapes if verdict.checks else ()
    sizes = ", ".join(map(_show.shape, traced))
    found: dict[tuple[str, str], list[Check]] = {}
    for check in verdict.checks:
        key = check.values, sizes if check.shapes == traced else "other sizes"
        found.setdefault(("some of them", check.runtime) if check.runtime else key, []).append(check)
    return dict(sorted(found.items(), key=lambda group: all(check.passed for check in group[1])))


def group_row(key: tuple[str, str], checks: Sequence[Check]) -> tuple[str | Text, ...]:
    """The output that came closest to its bound, or went farthest beyond it."""
    judgements = [judgement for check in checks for judgement in check.judgements]
    if not judgements:
        return (*key, str(len(checks)), "", "", _show.word("UNVERIFIED"))
    worst = max(judgements, key=lambda j: (not j.passed, j.error / j.bound if j.bound else j.error))
    scale = worst.scale or 1.0
    passed = all(check.passed for check in checks)
    error, bound = _show.number(worst.error / scale), _show.number(worst.bound / scale)
    word = _show.word("PASS" if passed else "FAIL") if checks[0].counts or passed else Text("differs")
    return (*key, str(len(checks)), error, bound, word)


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


def _shapes(graph: ir.Model, given: list[_inputs.Input], path: Path) -> list[_inputs.Input]:
    """What to try the file on; nothing where the file itself says it.

    Raises:
        InputError: the file does not say it and the user does not either, or a name is not in the file.
    """
    names = [str(value.name) for value in graph.graph.inputs]
    unknown = [entry.name for entry in given if entry.name and entry.name not in names]
    if unknown:
        raise InputError(f"{path} has no input {unknown[0]!r}{_show.near(unknown[0], names)}")
    if given or _graph.manifest(graph, path) is not None:
        return sorted(given, key=lambda entry: names.index(entry.name)) if given and given[0].name else given
    fixed = [_graph.lengths(value) for value in graph.graph.inputs]
    if not all(shape is not None and all(isinstance(length, int) for length in shape) for shape in fixed):
        raise InputError(f"{path} does not say which shapes to try; give --input 1x3x32x32, once for each of {names}")
    return [_inputs.Input(tuple(int(length) for length in shape or ()), name) for name, shape in zip(names, fixed)]
