"""A verification as one document of plain data; ``schema.json`` beside this file says what is in it.

Everything else in this package is made from the document alone, but for the pictures of the worst case.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from poolexport.bundle import files, sha256
from poolexport.report.plain import plain

if TYPE_CHECKING:
    from poolexport.pipeline.verify import Check, LeftOut, Verdict
    from poolexport.proof.steps import Located
    from poolexport.report.worst import Worst

FORMAT, VERSION = "poolexport-report", 1
#: What is called the truth where a file is compared with another one.
SECOND = "the second file"
PACKAGES = ("poolexport", "torch", "onnx", "onnxruntime", "numpy")


@dataclass(frozen=True)
class Settings:
    """What was asked for.

    Args:
        seed: of the values tried.
        factor: how many times farther from the truth than the standard a file may be.
        rtol, atol: bounds given by the user in place of that; None where they were not.
        extremes: whether huge, tiny, infinite and NaN values were tried.
        strict: whether answers to NaN and infinities counted.
        data: files whose inputs were tried.
        runtimes: other runtimes that the file was run with, as they were asked for.
        budget: seconds after which no further check was begun; None where there was no limit.
    """

    seed: int
    factor: float
    rtol: float | None = None
    atol: float | None = None
    extremes: bool = True
    strict: bool = False
    data: tuple[str, ...] = ()
    runtimes: tuple[str, ...] = ()
    budget: float | None = None


def document(
    subject: Mapping[str, Any],
    standard: Mapping[str, Any],
    settings: Settings,
    *,
    command: str,
    verdict: Verdict | None = None,
    reason: str = "",
    worst: Worst | None = None,
    culprits: Sequence[Mapping[str, Any]] = (),
    witness: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The document.

    Args:
        subject: the file that was verified; see ``file_facts``.
        standard: what it was compared with: {"kind": "model" or "file", "name": ..., "weights": ..., "sha256": ...}.
        settings: what was asked for.
        command: that makes the report again.
        verdict: what was found; None where nothing could be compared.
        reason: the sentence that says why the verification failed or was refused.
        worst: the worst case that was seen.
        culprits: layers that introduce error; see ``culprits_of``.
        witness: the smallest input that fails: {"file", "script", "shapes", "reason"}.
    """
    counted = [check for check in verdict.checks if check.counts] if verdict else []
    return plain(
        {
            "format": FORMAT,
            "version": VERSION,
            "verdict": verdict.word if verdict else "REFUSED",
            "grade": verdict.grade if verdict else "REFUSED",
            "summary": measure(verdict) if verdict else "nothing was compared",
            "reason": " ".join(reason.split()),
            "subject": subject,
            "standard": standard,
            "settings": {
                **asdict(settings),
                "bound": verdict.bound if verdict else "",
                "bounds_given": settings.rtol is not None or settings.atol is not None,
                "truth": verdict.truth if verdict else "",
            },
            "counts": {
                "checks": len(verdict.checks) if verdict else 0,
                "planned": len(verdict.checks) + len(verdict.left_out) if verdict else 0,
                "left_out": len(verdict.left_out) if verdict else 0,
                "failed": len(verdict.failures) if verdict else 0,
                "not_counted": len(verdict.checks) - len(counted) if verdict else 0,
                "remarks": len(verdict.remarks) if verdict else 0,
                "skipped": len(verdict.skipped) if verdict else 0,
            },
            "measures": measures(counted) | {"relative_error": verdict.worst_error if verdict else None},
            "outputs": _outputs(counted, subject, verdict.random if verdict else ()),
            "checks": checks(verdict.checks) if verdict else [],
            "left_out": left_out(verdict) if verdict else [],
            "untried": verdict.untried if verdict else (),
            "skipped": verdict.skipped if verdict else (),
            "random_outputs": verdict.random if verdict else (),
            "worst": worst.facts() if worst else None,
            "culprits": culprits,
            "witness": witness,
            "against": None,
            "environment": environment(),
            "command": command,
        }
    )


def checks(found: Iterable[Check]) -> list[dict[str, Any]]:
    """Every check with a name of its own, by which reports are compared."""
    found = list(found)
    result = []
    for name, check in zip(_names(found), found):
        result.append(
            {
                "name": name,
                "values": check.values,
                "shapes": check.shapes,
                "runtime": check.runtime,
                "passed": check.passed,
                "counts": check.counts,
                "relative_error": check.relative_error,
                "outputs": [asdict(judgement) for judgement in check.judgements],
            }
        )
    return result


def left_out(verdict: Verdict) -> list[str]:
    """The names that the checks would have which were left out for lack of time."""
    return _names([*verdict.checks, *verdict.left_out])[len(verdict.checks) :]


def _names(found: Iterable[Check | LeftOut]) -> list[str]:
    """Names of their own: where some are alike, those after the first have a number."""
    seen: dict[str, int] = {}
    names = []
    for check in found:
        name = name_of(check)
        seen[name] = seen.get(name, 0) + 1
        names.append(name if seen[name] == 1 else f"{name}, {seen[name]}")
    return names


def name_of(check: Check | LeftOut) -> str:
    """What was tried, in words; the shapes of what nobody looked at are not known.

    Example:
        >>> from types import SimpleNamespace
        >>> name_of(SimpleNamespace(values="ties", shapes=((1, 3, 8, 8),), runtime=""))
        'ties at 1x3x8x8'
    """
    shapes = [] if check.shapes is None else ["x".join(map(str, shape)) or "scalar" for shape in check.shapes]
    where = f" at {', '.join(shapes)}" if shapes else ""
    return check.values + where + (f" ({check.runtime})" if check.runtime else "")


def measures(counted: Sequence[Check]) -> dict[str, Any]:
    """How far off the file is.

    ``ulps``: the largest error in units in the last place of the largest entry of its output. ``share``: the largest
    error as a share of what was allowed. ``equal``: the mean share of values that are the standard's to the last bit.
    ``agree``: the smallest share of places where the largest entry along axis 1 is that of the truth. ``stray``: values
    that are NaN or infinite in the wrong places.
    """
    found = [judgement for check in counted for judgement in check.judgements if judgement.finite]
    agreed = [judgement.agree for judgement in found if judgement.agree is not None]
    return {
        "ulps": max((judgement.ulps for judgement in found), default=None),
        "share": max((judgement.share for judgement in found), default=None),
        "equal": sum(judgement.equal for judgement in found) / len(found) if found else None,
        "agree": min(agreed, default=None),
        "stray": sum(judgement.stray for judgement in found),
    }


def measure(verdict: Verdict) -> str:
    """The measures, in a sentence."""
    found = measures([check for check in verdict.checks if check.counts])
    if found["ulps"] is None:
        return "nothing was compared"
    whose = f"{SECOND}'s" if verdict.truth == SECOND else "torch's"
    parts = [
        f"at most {found['ulps']:.3g} units in the last place of the largest answer",
        f"{found['equal']:.1%} of the values are {whose} to the last bit",
    ]
    if found["agree"] is not None:
        where = "everywhere" if found["agree"] == 1 else f"in {found['agree']:.1%} at worst"
        parts.append(f"the largest entry agrees {where}")
    if found["stray"]:
        parts.append(f"{found['stray']} values are NaN or infinite in the wrong places")
    if verdict.left_out:
        planned = len(verdict.checks) + len(verdict.left_out)
        parts.append(f"only {len(verdict.checks)} of {planned} checks were made before the time was over")
    return "; ".join(parts)


def culprits_of(located: Located) -> list[dict[str, Any]]:
    """The layers that introduce error, as a report holds them.

    Args:
        located: what ``poolexport.proof.locate.locate`` found.
    """
    return [
        {
            "path": step.path,
            "node": ", ".join(node.name for node in step.nodes),
            "operator": step.operator,
            "created": step.judgement.error,
            "allowed": step.judgement.bound,
            "inherited": step.inherited,
        }
        for step in located.culprits
    ]


def file_facts(path: Path) -> dict[str, Any]:
    """What a report says about a file: its kind, its ports, and hashes of everything that belongs to it.

    What cannot be read is left out, so that a file that is refused has a report, too.
    """
    import onnx_ir as ir

    from poolexport.graph import files_beside

    facts: dict[str, Any] = {
        "path": str(path),
        "kind": "bundle" if path.is_dir() else "file",
        "sha256": {},
        "bytes": 0,
        "opset": None,
        "inputs": [],
        "outputs": [],
    }
    held = files(path) if path.exists() else []
    try:
        model = ir.load(path / "model.onnx" if path.is_dir() else path)
        facts["opset"] = model.opset_imports.get("")
        facts["inputs"], facts["outputs"] = (
            [_port(v) for v in side] for side in (model.graph.inputs, model.graph.outputs)
        )
        held += [file for file in files_beside(model, held[0]) if file not in held]
    except Exception:
        # whatever is wrong with it is told elsewhere
        pass
    named = {file.name: file for file in held}
    facts["sha256"] = {name: sha256(file) for name, file in named.items()}
    facts["bytes"] = sum(file.stat().st_size for file in named.values())
    return facts


def environment() -> dict[str, Any]:
    """Where and when; nothing that names a person or a machine."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
        "system": platform.system(),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
    }


def _outputs(counted: Sequence[Check], subject: Mapping[str, Any], random: Sequence[str]) -> list[dict[str, Any]]:
    """The worst of every output that is compared."""
    names = [port["name"] for port in subject["outputs"] if port["name"] not in random]
    found = []
    for position, name in enumerate(names):
        judged = [check.judgements[position] for check in counted if len(check.judgements) == len(names)]
        if judged:
            far = max(judged, key=lambda judgement: (not judgement.passed, judgement.share))
            entry = {"name": name, "checks": len(judged), "failed": sum(not judgement.passed for judgement in judged)}
            found.append(entry | {"worst": asdict(far), "share": far.share})
    return found


def _port(value: Any) -> dict[str, Any]:
    lengths = None if value.shape is None else [n if isinstance(n, int) else str(n.value or "?") for n in value.shape]
    return {"name": str(value.name), "type": value.dtype.name if value.dtype else None, "shape": lengths}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
