"""``poolexport package``: what other serving systems need to serve a proven model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import click

from poolexport.cli import _show


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option(
    "--triton",
    "repository",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Add it to this model repository of Triton Inference Server.",
)
@click.option("--kserve", metavar="FILE", type=click.Path(path_type=Path), help="Write an InferenceService of KServe.")
@click.option(
    "--docker",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Create a folder that docker build makes a server of.",
)
@click.option("--name", help="What it is called there; made from PATH by default.")
@click.option("--model-version", type=click.IntRange(1), help="Number of its folder, for --triton; 1 by default.")
@click.option("--max-batch", type=click.IntRange(1), help="Rows put together at most, for --triton; 8 by default.")
@click.option(
    "--op-library",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Library of custom operators that Triton loads with it.",
)
@click.option("--storage-uri", metavar="URI", help="Where a cluster finds the Triton repository, for --kserve.")
@click.option("--image", metavar="NAME", help="The image built from --docker, for --kserve in place of --storage-uri.")
@click.option("--force", is_flag=True, help="Replace what an earlier call wrote.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def package(
    path: Path,
    repository: Path | None,
    kserve: Path | None,
    docker: Path | None,
    name: str | None,
    model_version: int | None,
    max_batch: int | None,
    op_library: Path | None,
    storage_uri: str | None,
    image: str | None,
    force: bool,
    as_json: bool,
) -> None:
    """Hand a proven model to Triton, KServe or Docker.

    PATH is a bundle or any .onnx file. A batch axis is declared only where every input and output has it and rows of a
    batch were seen to be answered independently.

    \b
    Example:
      poolexport package build --triton repository --name net
      poolexport package build --kserve net.yaml --storage-uri pvc://models/repository
    """
    if repository is None and kserve is None and docker is None:
        raise click.UsageError("say what for: --triton, --kserve or --docker")
    given = {"--model-version": model_version, "--max-batch": max_batch, "--op-library": op_library}
    _only_with("--triton", repository, given)
    _only_with("--kserve", kserve, {"--storage-uri": storage_uri, "--image": image})
    from poolexport import handoff

    model = handoff.deployment(path, name)
    written: dict[str, Path] = {}
    if repository is not None:
        options = {"version": model_version, "max_batch": max_batch, "op_library": op_library}
        chosen = {key: value for key, value in options.items() if value is not None}
        written["triton"] = handoff.triton(model, repository, force=force, **chosen)  # type: ignore[arg-type]
    if docker is not None:
        written["docker"] = handoff.docker(model, docker, force=force)
    if kserve is not None:
        written["kserve"] = handoff.kserve(model, kserve, storage=storage_uri, image=image, force=force)
    batches = model.batch_axis or None
    if as_json:
        _show.document({"name": model.name, "batch_axis": batches, "unbatched": model.unbatched, **written})
        return
    said = f"along {batches}: rows were answered independently" if batches else f"no: {model.unbatched}"
    _show.out(_show.facts([("name", model.name), ("batches", said), *((k, str(v)) for k, v in written.items())]))


def _only_with(target: str, asked: Path | None, options: Mapping[str, object]) -> None:
    if asked is None:
        for name, value in options.items():
            if value is not None:
                raise click.UsageError(f"{name} goes with {target}")
