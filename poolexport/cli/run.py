"""``poolexport run``: a model over arrays and images on disk."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click

from poolexport.cli import _picture, _ray, _show
from poolexport.cli._progress import progress
from poolexport.errors import InputError


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("inputs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--out", required=True, metavar="DIR", type=click.Path(path_type=Path), help="Folder for answers.")
@click.option("--batch", default=8, show_default=True, help="Rows or images of one run.")
@click.option("--threads", type=int, help="Files worked on at a time; the number of processors by default.")
@_picture.options
@click.option("--keep-going", is_flag=True, help="Go on after a file that cannot be read or run, and list it.")
@click.option("--force", is_flag=True, help="Run everything anew.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@_ray.options("Run")
def run(
    model: Path,
    inputs: tuple[Path, ...],
    out: Path,
    batch: int,
    threads: int | None,
    keep_going: bool,
    force: bool,
    as_json: bool,
    on_ray: bool,
    ray_address: str | None,
    **pixels: Any,
) -> None:
    """Run a model over files and folders of arrays and images.

    MODEL is a bundle or an .onnx file; INPUTS are .npy, .npz and image files, or folders of them. Every file gives one
    .npz of the outputs. Started again, a run that was cut off goes on where it was. With --ray, files are read and
    answers written here, and the model runs on all processors of a cluster.

    \b
    Example:
      poolexport run net photographs -o answers --size 224x224 --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225
    """
    from poolexport import offline

    picture = _picture.picture(**pixels)
    run_them: Callable[..., offline.Report] = offline.run
    if on_ray or ray_address:
        from poolexport.offline import cluster

        run_them = partial(cluster.run, address=ray_address or "")
    with progress() as report:
        done = run_them(
            model,
            inputs,
            out,
            batch=batch,
            threads=threads,
            picture=picture,
            keep_going=keep_going,
            force=force,
            progress=report,
        )
    failures = {str(failure.path): failure.reason for failure in done.failures}
    if as_json:
        _show.document({"out": str(out), "written": done.written, "found": done.found, "failures": failures})
    else:
        rows = [("answers", f"{done.written} written to {out}")]
        rows += [("", f"{done.found} were there from an earlier run")] if done.found else []
        rows += [("failed", reason) for reason in failures.values()]
        _show.out(_show.facts(rows))
    if failures:
        sys.exit(InputError.exit_code)
