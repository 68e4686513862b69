"""``poolexport demo``: every method from its checkpoint to onnxruntime, with a table and a page of pictures."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.text import Text

from poolexport.cli import _progress, _show

#: The networks are a guest of this package: it works without them, so nothing in it imports them by name.
GUEST = "poolexport_models.demo"


@click.command()
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("out/demo"),
    show_default=True,
    help="Folder for the page and the exported files.",
)
@click.option("--only", multiple=True, metavar="NAME", help="Show this method; may be given several times.")
@click.option("--force", is_flag=True, help="Replace what an earlier run left in the folder.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of a table.")
def demo(output: Path, only: Sequence[str], force: bool, as_json: bool) -> None:
    """Export a trained network per method, run it in onnxruntime, and draw what its pooling does.

    Every network was trained on handwritten digits, or on scenes composed from them. It is exported in both forms with
    dynamic N, H and W, proven equal to the model, and run on all test inputs; every predicted class is compared with
    torch's, and every answer and every picture with the model in float64.

    Exit code 0 where every method passes, 1 where anything differs, 2 where something cannot be read or written.

    \b
    Example:
      poolexport demo --only softpool --only s3pool
    """
    with _progress.progress() as progress:
        guest = importlib.import_module(GUEST)
        rows = guest.main(output, only=only or None, force=force, progress=progress)
    passed = all(row.passed for row in rows)
    if as_json:
        page = str(output / guest.PAGE)
        _show.document({"passed": passed, "page": page, "methods": [row.to_dict() for row in rows]})
    else:
        report(guest, rows, output / guest.PAGE)
    if not passed:
        click.get_current_context().exit(1)


def report(guest: Any, rows: Sequence[Any], page: Path) -> None:
    """A line per method, then why a method failed, then where the page is."""
    numbers = ("torch", "ORT", "differ", "largest diff", "checks", "s")
    forms = [form.name for form in rows[0].forms]
    headers = ("method", "network", *numbers[:-1], *forms, numbers[-1])
    _show.out(_show.table(headers, [line(row) for row in rows], right=numbers))
    for failure in [failure for row in rows for failure in row.failures]:
        _show.out(Text.assemble(("FAIL", "bold red"), " ", failure))
    passed = sum(row.passed for row in rows)
    proven = f"{passed} of {len(rows)} methods: proven with dynamic N, H, W"
    _show.out(
        Text.assemble(
            _show.word("PASS" if passed == len(rows) else "FAIL"),
            f"  {proven} and the same class as torch on {guest.tested(rows)}",
        )
    )
    _show.out(f"page: {page}")


def line(row: Any) -> tuple[str | Text, ...]:
    """A method in one line; of two files that disagree, the worse number."""
    ran = [form for form in row.forms if form.accuracy is not None]
    return (
        row.method,
        row.network.removesuffix("CNN").lower(),
        f"{row.accuracy:.1%}",
        f"{min(form.accuracy for form in ran):.1%}" if ran else "",
        f"{max(form.differing for form in ran)}" if ran else "",
        f"{max(form.largest for form in ran):.1e}" if ran else "",
        f"{sum(form.checks for form in ran)}" if ran else "",
        *(_show.word("PASS" if form.passed else "FAIL") for form in row.forms),
        f"{row.seconds:.1f}",
    )
