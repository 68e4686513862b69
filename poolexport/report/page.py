"""A report as one page for people: no other file and no network is needed to read it."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from poolexport.errors import MissingExtraError
from poolexport.report import matrix
from poolexport.report.pictures import pictures
from poolexport.report.worst import Case

TEMPLATES = Path(__file__).with_name("templates")
#: Failures and changes that are written out.
MOST = 8


@dataclass(frozen=True)
class Bar:
    """A bar of the histogram: ``height`` is a share of the highest one."""

    label: str
    count: int
    height: float
    beyond: bool = False


def page(document: Mapping[str, Any], case: Case | None = None) -> str:
    """The page.

    Args:
        document: the report.
        case: the worst case, to be pictured.

    Raises:
        MissingExtraError: jinja2 or pillow is not installed.
    """
    require()
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    failures = [check for check in document["checks"] if check["counts"] and not check["passed"]]
    return environment.get_template("report.html.jinja").render(
        report=document,
        most=MOST,
        failures=failures[:MOST],
        more=len(failures[MOST:]),
        matrices=matrix.matrices(document["checks"]),
        bars=histogram(document["worst"]["histogram"]) if document["worst"] else [],
        outputs=[_output(entry) for entry in document["outputs"]],
        layers=_layers(document["culprits"]),
        pictures=pictures(case) if case else [],
        ways=len({check["runtime"] for check in document["checks"]}),
        sizes=len({str(check["shapes"]) for check in document["checks"]}),
    )


def require() -> None:
    """Make sure that everything a page needs is there.

    Raises:
        MissingExtraError: a package is not installed.
    """
    for module, package in (("jinja2", "jinja2"), ("PIL", "pillow")):
        try:
            importlib.import_module(module)
        except ImportError as error:
            purpose = "writing a page (--report FILE.json and FILE.xml do without)"
            raise MissingExtraError(package, "report", purpose) from error


def histogram(found: Mapping[str, Any]) -> list[Bar]:
    """A bar per decade between the smallest error and the largest one, or the bound; values without error come first.

    Example:
        >>> found = {"edges": [1e-3, 1e-2, 1e-1, 1.0, 10.0], "counts": [0, 4, 2, 0], "exact": 8, "strays": 0}
        >>> [(bar.label, bar.count) for bar in histogram(found)]
        [('0', 8), ('.01', 4), ('.1', 2)]
    """
    edges, counts = found["edges"], found["counts"]
    within = next(k for k, edge in enumerate(edges) if edge > 0.999)
    used = [k for k, count in enumerate(counts) if count] or [within - 1]
    first, last = min(used[0], within - 1), max(used[-1], within - 1)
    bars = [("0", found["exact"], False)] if found["exact"] else []
    bars += [(_power(edges[k]), counts[k], edges[k] > 0.999) for k in range(first, last + 1)]
    bars += [("NaN, ∞", found["strays"], True)] if found["strays"] else []
    highest = max(count for _, count, _ in bars) or 1
    return [Bar(label, count, count / highest, beyond) for label, count, beyond in bars]


def number(value: float | None) -> str:
    """Three significant digits, written out where people would.

    Example:
        >>> [number(x) for x in (0.00021, 6.012, 84433.0, 4.7e11, None)]
        ['0.00021', '6.01', '84,400', '4.7e+11', 'no number']
    """
    if value is None:
        return "no number"
    return f"{float(f'{value:.3g}'):,.0f}" if 1000 <= abs(value) < 1e8 else f"{value:.3g}"


def _power(edge: float) -> str:
    if 0.00999 < edge < 999:
        return f"{edge:.1g}".lstrip("0") if edge < 10 else f"{float(f'{edge:.1g}'):g}"
    return f"{edge:.0e}".replace("e+0", "e").replace("e-0", "e-").replace("e+", "e")


def _output(entry: Mapping[str, Any]) -> dict[str, Any]:
    passed = not entry["failed"]
    return {
        **entry,
        "width": _width(entry["share"]),
        "level": matrix.level(entry["share"] if entry["share"] is not None else 1.0, passed=passed),
        "text": matrix.short(entry["share"]),
    }


def _layers(culprits: list[Mapping[str, Any]]) -> list[dict[str, Any]]:
    made = []
    for entry in culprits:
        allowed = entry["allowed"] or 0.0
        share = entry["created"] / allowed if allowed and entry["created"] is not None else None
        made.append({**entry, "width": _width(share), "text": matrix.short(share)})
    return made


def _width(share: float | None) -> float:
    """Per cent of a track whose middle is the bound; what is far beyond ends at its end."""
    return 100.0 if share is None else min(100.0, 50.0 * share)
