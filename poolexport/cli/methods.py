"""``poolexport methods``: what there is."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from poolexport.cli import _progress, _show
from poolexport.errors import InputError

if TYPE_CHECKING:
    from poolexport.method import Method, Paper


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document with every field of every method.")
def methods(names: tuple[str, ...], as_json: bool) -> None:
    """List the pooling methods: layers, rules and papers.

    With NAMEs, those methods only.
    """
    with _progress.progress():
        from poolexport.catalog import methods as catalogue

        known = catalogue()
    for name in names:
        if name not in known:
            raise InputError(f"there is no method {name!r}{_show.near(name, known)}")
    chosen = [known[name] for name in names or sorted(known)]
    if as_json:
        _show.document({"methods": [card(method) for method in chosen]})
        return
    headers = ("method", "layers", "training", "inference", "paper")
    rows = [(m.name, layers(m), m.training, m.inference, source(m.paper)) for m in chosen]
    _show.out(_show.table(headers, rows, whole=("method", "layers")))


def layers(method: Method) -> str:
    """``SoftPool1d 2d 3d``: the layers, with their common name said once."""
    first, *others = (layer.__name__ for layer in method.layers)
    stem = first[:-2]
    return " ".join([first, *(name.removeprefix(stem) for name in others)])


def source(paper: Paper) -> str:
    """``Stergiou et al. 2021, arXiv:2101.00440``."""
    authors = paper.authors.split(", ")
    who = f"{authors[0]} et al." if len(authors) > 2 else " and ".join(authors)
    return f"{who} {paper.year}, {paper.link}"


def card(method: Method) -> dict[str, Any]:
    """Every field of a method that is data."""
    return {
        "name": method.name,
        "summary": method.summary,
        "layers": [{"name": layer.__name__, "dims": rank} for layer, rank in zip(method.layers, method.ranks)],
        "paper": asdict(method.paper),
        "training": method.training,
        "inference": method.inference,
        "random": method.random,
        "operators": [operator.name for operator in method.operators],
        "cases": [asdict(case) for case in method.cases],
        "limits": [asdict(limit) for limit in method.limits],
        "notes": method.notes,
    }
