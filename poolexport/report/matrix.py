"""The checks of a report in rows and columns: values by ways of running the file, and values by sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

#: Rows of a table; what there are more is counted, the worst come first.
ROWS = 40

Entry = Mapping[str, Any]


@dataclass(frozen=True)
class Cell:
    """Checks of one row and column.

    Args:
        level: "exact", "low", "middle", "high", "failed", "differs" (it does not count) or "" (nothing was tried).
        text: the error as a share of what was allowed.
        told: the same in words.
    """

    level: str = ""
    text: str = ""
    told: str = "not tried"


@dataclass(frozen=True)
class Matrix:
    """A table of cells."""

    title: str
    corner: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]
    left_out: int = 0


def matrices(checks: Sequence[Entry]) -> list[Matrix]:
    """At the sizes that the file was traced with: values by ways of running it. Then other sizes by values."""
    if not checks:
        return []
    traced = checks[0]["shapes"]
    # a variant is tried at other sizes, too; that counts for the variant
    near = [check for check in checks if check["shapes"] == traced or check["runtime"]]
    far = [check for check in checks if check["shapes"] != traced and not check["runtime"]]
    made = [_matrix("Values", "values", near, lambda c: _values(c, traced), lambda c: c["runtime"] or "as it is")]
    if far:
        made.append(_matrix("Sizes", "sizes", far, lambda c: shapes(c["shapes"]), lambda c: c["values"]))
    return made


def groups(checks: Sequence[Entry]) -> dict[str, list[Entry]]:
    """The checks by values and sizes, or by the way of running the file."""
    found: dict[str, list[Entry]] = {}
    for check in checks:
        where = "traced sizes" if check["shapes"] == checks[0]["shapes"] else "other sizes"
        found.setdefault(check["runtime"] or f"{check['values']}, {where}", []).append(check)
    return found


def shapes(lengths: Sequence[Sequence[int]]) -> str:
    """Shapes of all inputs.

    Example:
        >>> shapes([[1, 3, 8, 8], [1, 4]])
        '1x3x8x8, 1x4'
    """
    return ", ".join("x".join(map(str, shape)) or "scalar" for shape in lengths)


def level(share: float | None, *, passed: bool, counts: bool = True) -> str:
    """Which colour an error gets.

    Example:
        >>> level(0.0, passed=True), level(0.3, passed=True), level(2.0, passed=False)
        ('exact', 'middle', 'failed')
    """
    if not passed:
        return "failed" if counts else "differs"
    if not share:
        return "exact"
    return "low" if share < 0.1 else "middle" if share < 0.5 else "high"


def short(share: float | None) -> str:
    """A share in at most four characters.

    Example:
        >>> [short(x) for x in (0.0, 0.001, 0.52, 3.21, 4711.0, None)]
        ['0', '<.01', '.52', '3.2', '5e3', '∞']
    """
    if share is None:
        return "∞"
    if share == 0:
        return "0"
    if share < 0.01:
        return "<.01"
    if share < 1:
        return f"{share:.2f}".lstrip("0")
    if share < 100:
        return f"{share:.2g}"
    return f"{share:.0e}".replace("e+0", "e").replace("e+", "e")


def share_of(check: Entry) -> float | None:
    """The largest error as a share of what was allowed; None where it is no number."""
    found = []
    for output in check["outputs"]:
        if output["error"] is None or (output["error"] and not output["bound"]):
            return None
        found.append(output["error"] / output["bound"] if output["bound"] else 0.0)
    return max(found, default=0.0)


def _values(check: Entry, traced: Any) -> str:
    return check["values"] if check["shapes"] == traced else f"{check['values']}, other size"


def _matrix(title: str, corner: str, checks: Sequence[Entry], row_of: Any, column_of: Any) -> Matrix:
    columns = tuple(dict.fromkeys(column_of(check) for check in checks))
    found: dict[str, dict[str, list[Entry]]] = {}
    for check in checks:
        found.setdefault(row_of(check), {}).setdefault(column_of(check), []).append(check)
    rows = [(name, tuple(_cell(cells.get(column, [])) for column in columns)) for name, cells in found.items()]
    if len(rows) > ROWS:
        rows.sort(key=lambda row: not any(cell.level == "failed" for cell in row[1]))
    return Matrix(title, corner, columns, tuple(rows[:ROWS]), len(rows[ROWS:]))


def _cell(checks: Sequence[Entry]) -> Cell:
    if not checks:
        return Cell()
    worst = max(checks, key=lambda c: (not c["passed"], float("inf") if share_of(c) is None else share_of(c)))
    share, passed = share_of(worst), worst["passed"]
    word = "passed" if passed else "failed" if worst["counts"] else "differs, which does not count"
    strays = sum(output["stray"] for output in worst["outputs"])
    if strays:
        text, times = "NaN", f"{strays} values are NaN or infinite in the wrong places"
    else:
        text, times = short(share), "no number" if share is None else f"{share:.2g} times what was allowed"
    return Cell(level(share, passed=passed, counts=worst["counts"]), text, f"{word}, {times}")
