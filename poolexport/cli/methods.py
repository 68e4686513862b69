"""``poolexport methods``: what there is."""

from __future__ import annotations

from collections.abc import Sequence
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
    headers = ("method", "layers", "inference", "training", "paper")
    rows = []
    for m in chosen:
        rows.append((m.name, layers(m), m.inference, m.training, source(m.paper)))
        rows += [("", variant.__name__, "", "", "") for variant in m.variants]
    count, is_narrow = columns(rows)
    # the rules of training and inference are read together, in the order in which they happen
    order = [position for position in (0, 1, 3, 2, 4) if position < count]
    _show.out(
        _show.table(
            [headers[position] for position in order],
            [[row[position] for position in order] for row in rows],
            whole=("method",) if is_narrow else ("method", "layers"),
        )
    )


def columns(rows: Sequence[Sequence[str]]) -> tuple[int, bool]:
    """How many columns fit beside each other without getting too narrow to read, and whether even two do not."""
    gap, narrowest = 3, 20
    left = _show.width() - sum(max(len(row[position]) for row in rows) + gap for position in (0, 1))
    return min(len(rows[0]), 2 + max(0, left // (narrowest + gap))), left < -gap


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
        "variants": [layer.__name__ for layer in method.variants],
        "space": method.space,
        "graph_dtypes": method.graph_dtypes,
        "dynamic_channels": method.dynamic_channels,
        "random": method.random,
        "operators": [operator.name for operator in method.operators],
        "cases": [asdict(case) for case in method.cases],
        "limits": [asdict(limit) for limit in method.limits],
        "notes": method.notes,
    }
