"""What became worse, and what better, since an earlier report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from poolexport.errors import InputError
from poolexport.report.data import FORMAT, VERSION
from poolexport.report.schema import faults
from poolexport.tolerance import GRADES, worst

#: An error that grew by more than this factor is a regression ...
GROWTH = 4.0
#: ... but one below so many units in the last place is as good as none: another processor may round so.
ULPS = 4.0

Entry = Mapping[str, Any]


def read(path: Path) -> dict[str, Any]:
    """An earlier report.

    Raises:
        InputError: there is none, it is damaged, or it holds no comparison.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"the report {path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not a report of poolexport: it holds no JSON") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise InputError(f"{path} is not a report of poolexport; give a JSON file that --report has written")
    if found.get("version") != VERSION:
        raise InputError(
            f"{path} is a report of version {found.get('version')!r}, and this poolexport reads version {VERSION}; "
            "write it anew with --report"
        )
    fault = next(faults(found), None)
    if fault is not None:
        raise InputError(f"the report {path} is damaged: {fault}")
    names = [check["name"] for check in found["checks"]]
    twice = next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None
    if twice is not None:
        raise InputError(f"the report {path} is damaged: it holds the check {twice!r} twice")
    if not names:
        raise InputError(
            f"{path} reports that nothing was compared, so nothing can be told against it: {found['reason']}"
        )
    return found


def require_same_kind(before: Entry, subject: Entry, standard: Entry, path: Path) -> None:
    """Refuse a report of another network.

    Raises:
        InputError: with what is different.
    """
    if before["standard"]["kind"] != standard["kind"]:
        raise InputError(
            f"{path} reports a comparison with a {before['standard']['kind']}, this is one with a {standard['kind']}"
        )
    for side in ("inputs", "outputs"):
        then, now = (_ports(entry[side]) for entry in (before["subject"], subject))
        if then != now:
            raise InputError(f"{path} is about another network: its {side} are {then}, those of this file are {now}")


def compare(before: Entry, now: Entry, path: Path, growth: float = GROWTH) -> dict[str, Any]:
    """What changed, as ``against`` of a report.

    A regression is a check that failed since, whose grade became worse, whose error grew by more than the factor, or
    that is not made or not counted any more. What was left out for lack of time is none, and is told.
    """
    then_by, now_by = ({check["name"]: check for check in report["checks"]} for report in (before, now))
    regressions, improvements = [], []
    left_out = [name for name in then_by if name not in now_by and _is_left_out(name, now)]
    for name, then in then_by.items():
        if name in left_out:
            continue
        worse, better = _changes(name, then, now_by.get(name), growth)
        regressions += worse
        improvements += better
    for output in now["random_outputs"]:
        if output not in before["random_outputs"]:
            regressions.append(
                _change("missing", output, f"output {output} is random now, and is not compared any more")
            )
    new = [name for name in now_by if name not in then_by]
    if new:
        improvements.append(_change("new", new[0], f"{len(new)} checks are new, the first {new[0]}"))
    return {
        "report": str(path),
        "date": before["environment"]["date"],
        "factor": growth,
        "regressions": regressions,
        "improvements": improvements,
        "notes": [*_told_left_out(left_out), *_notes(before, now)],
    }


def _is_left_out(name: str, now: Entry) -> bool:
    # inputs that nobody looked at are listed without their shapes
    return any(name == left or name.startswith(f"{left} at ") for left in now["left_out"])


def _told_left_out(names: Sequence[str]) -> list[str]:
    if not names:
        return []
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return [f"not made this time, because the time was over: {names[0]}{more}"]


def _changes(name: str, then: Entry, now: Entry | None, growth: float) -> tuple[list[Any], list[Any]]:
    """What became worse and what better in one check."""
    if now is None:
        return [_change("missing", name, f"{name}: is not checked any more")], []
    if then["counts"] and not now["counts"]:
        return [_change("missing", name, f"{name}: does not count any more")], []
    if not then["counts"]:
        return [], []
    if then["passed"] != now["passed"]:
        if now["passed"]:
            return [], [_change("passed", name, f"{name}: failed, and passes now")]
        reasons = "; ".join(output["reason"] for output in now["outputs"] if output["reason"])
        return [_change("failed", name, f"{name}: passed, and fails now: {reasons}")], []
    grades = [worst(output["grade"] for output in check["outputs"]) for check in (then, now)]
    if grades[0] != grades[1]:
        change = _change("grade", name, f"{name}: was {grades[0]}, is {grades[1]}")
        return ([change], []) if GRADES.index(grades[1]) > GRADES.index(grades[0]) else ([], [change])
    if len(then["outputs"]) != len(now["outputs"]):
        told = f"{name}: {len(now['outputs'])} outputs are compared instead of {len(then['outputs'])}"
        return ([_change("missing", name, told)], []) if len(now["outputs"]) < len(then["outputs"]) else ([], [])
    errors = [(_ulps(a), _ulps(b)) for a, b in zip(then["outputs"], now["outputs"])]
    grown = max(errors, key=lambda pair: pair[1] / pair[0], default=(ULPS, ULPS))
    if grown[1] > growth * grown[0]:
        return [_change("error", name, f"{name}: the error grew from {_told(grown[0])} to {_told(grown[1])}")], []
    shrunk = min(errors, key=lambda pair: pair[1] / pair[0], default=(ULPS, ULPS))
    if shrunk[0] > growth * shrunk[1]:
        return [], [_change("error", name, f"{name}: the error shrank from {_told(shrunk[0])} to {_told(shrunk[1])}")]
    return [], []


def _ulps(output: Entry) -> float:
    # what has no number failed, and is told by that
    return max(ULPS, output["ulps"]) if output["ulps"] is not None else float(2**60)


def _told(ulps: float) -> str:
    return f"{ulps:.3g} units in the last place" if ulps > ULPS else f"at most {ulps:g} units in the last place"


def _change(kind: str, check: str, told: str) -> dict[str, str]:
    return {"kind": kind, "check": check, "told": told}


def _notes(before: Entry, now: Entry) -> list[str]:
    """What else is different and may explain the rest."""
    notes = []
    for name in ("seed", "bound", "truth"):
        then, is_now = before["settings"][name], now["settings"][name]
        if then != is_now:
            notes.append(f"{name}: was {then}, is {is_now}")
    then, is_now = before["environment"]["versions"], now["environment"]["versions"]
    notes += [f"{name}: was {then.get(name)}, is {is_now[name]}" for name in is_now if then.get(name) != is_now[name]]
    if before["subject"]["sha256"] == now["subject"]["sha256"]:
        notes.append("the file is the same, byte for byte")
    return notes


def _ports(ports: Sequence[Entry]) -> str:
    return ", ".join(f"{port['name']} ({port['type']}, {len(port['shape'] or ())} axes)" for port in ports) or "none"
