"""``poolexport inline``: a file with functions becomes one of standard operators only."""

from __future__ import annotations

from pathlib import Path

import click

from poolexport.cli import _graph, _show


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--out",
    required=True,
    metavar="PATH",
    type=click.Path(path_type=Path),
    help="Folder to create where PATH is a bundle, or a single file where it ends in .onnx.",
)
@click.option("--force", is_flag=True, help="Replace an earlier export.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def inline(path: Path, out: Path, force: bool, as_json: bool) -> None:
    """Rewrite a file in standard operators only.

    PATH is a bundle or any .onnx file. Names, metadata and the place of the weights are kept. Both files are run on
    the same inputs; where they do not agree nothing is written.

    \b
    Example:
      poolexport inline build -o portable.onnx
    """
    _graph.read(path)
    from poolexport import api

    done = api.inline(path, out, force=force)
    if as_json:
        facts = {"path": str(out), "model": str(done.path), "functions": done.functions, "compared": done.compared}
        _show.document(facts)
        return
    rows = [
        ("file", f"{done.path} ({_show.size(done.path.stat().st_size)})"),
        *_graph.weight_rows(done.path),
        ("functions", ", ".join(done.functions) or "there were none"),
        ("compared", f"{done.compared} inputs, same answers" if done.compared else "no: no input could be made up"),
    ]
    _show.out(_show.facts(rows))
