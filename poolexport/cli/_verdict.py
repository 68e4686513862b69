"""A verdict for people: failures with their reasons, then every group of checks, then the measures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.text import Text

from poolexport.cli import _show
from poolexport.report.data import SECOND, left_out, measure

if TYPE_CHECKING:
    from poolexport.pipeline.verify import Check, Verdict


def show(verdict: Verdict) -> None:
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
        whose = verdict.truth if verdict.truth == SECOND else "torch"
        _show.out(f"answers otherwise than {whose} to {told} inputs, as runtimes do; --strict makes that a failure")
    if verdict.random:
        _show.out(f"not compared, because they are random: {_show.listed(verdict.random)}; only shapes and types were")
    for reason in verdict.untried:
        _show.out(f"not tried: {reason}")
    if verdict.left_out:
        first, more = left_out(verdict)[0], len(verdict.left_out) - 1
        others = f" and {more} more" if more else ""
        _show.out(f"left out, because the time was over: {first}{others}; give it more, or go on with --resume")
    made = str(len(verdict.checks))
    if verdict.left_out:
        made += f" of {len(verdict.checks) + len(verdict.left_out)}"
    counted = f"  {made} checks{failures}{skipped}; errors are relative, {verdict.truth} is the truth"
    _show.out(f"{verdict.grade}: {measure(verdict)}")
    _show.out(Text.assemble(_show.word(verdict.word), counted))


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
