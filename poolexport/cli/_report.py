"""--report, --against, --worse-by and --force: what a verification leaves behind, and what it is compared with."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.text import Text

from poolexport.cli import _show

if TYPE_CHECKING:
    from poolexport.pipeline.verify import Verdict
    from poolexport.report.data import Settings
    from poolexport.report.worst import Worst
    from poolexport.report.writing import Target

#: Changes that are printed.
MOST = 10

_OPTIONS = (
    click.option(
        "--report",
        "reports",
        multiple=True,
        metavar="DIR|FILE",
        type=click.Path(path_type=Path),
        help="Write a report: .html, .json, .xml (JUnit), or all three into a folder. May be given several times.",
    ),
    click.option(
        "--against",
        metavar="REPORT.json",
        type=click.Path(path_type=Path),
        help="An earlier report; what became worse since is a failure.",
    ),
    click.option(
        "--worse-by",
        type=click.FloatRange(1),
        metavar="FACTOR",
        default=4.0,
        show_default=True,
        help="With --against: an error that grew by more is a regression.",
    ),
    click.option("--force", is_flag=True, help="Replace reports that are there already."),
)


def options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options to a verb."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@dataclass(frozen=True)
class Reports:
    """The reports of one verification.

    Args:
        targets: the files to write.
        subject: facts about the file that is verified; empty where no report was asked for.
        standard: facts about what it is compared with.
        settings: what was asked for.
        worst: the worst case seen so far.
        against: the place of an earlier report, and what it says.
        growth: the factor by which an error may grow.
    """

    targets: Sequence[Target]
    subject: Mapping[str, Any]
    standard: Mapping[str, Any]
    settings: Settings
    worst: Worst
    against: tuple[Path, dict[str, Any]] | None
    growth: float
    changes: dict[str, Any] = field(default_factory=dict)

    def write(
        self,
        verdict: Verdict | None,
        reason: str,
        culprits: Sequence[Mapping[str, Any]] = (),
        witness: Mapping[str, Any] | None = None,
    ) -> None:
        """Compare with the earlier report, and write what was asked for; without a verdict, that there is none.

        Raises:
            OutputError: a file cannot be written.
        """
        from poolexport.report import against, data, writing

        if not self.targets and self.against is None:
            return
        words = click.get_current_context().find_root().obj or []
        document = data.document(
            self.subject,
            self.standard,
            self.settings,
            command=shlex.join(["poolexport", *words]),
            verdict=verdict,
            reason=reason,
            worst=self.worst,
            culprits=culprits,
            witness=witness,
        )
        if self.against is not None and verdict is not None:
            path, before = self.against
            self.changes.update(against.compare(before, document, path, self.growth))
            document["against"] = self.changes
        writing.write(self.targets, document, self.worst.case)

    @property
    def regressions(self) -> list[Mapping[str, str]]:
        return self.changes.get("regressions", [])

    def show(self) -> None:
        """Tell people what changed, and where the reports are."""
        if self.changes:
            for title, style in (("regressions", "bold red"), ("improvements", "bold green")):
                changes = self.changes[title]
                word = "WORSE" if title == "regressions" else "better"
                for change in changes[:MOST]:
                    _show.out(Text.assemble((word, style), f"  {change['told']}"))
                if len(changes) > MOST:
                    _show.out(f"... and {len(changes) - MOST} more {title}")
            for note in self.changes["notes"]:
                _show.out(f"since {self.changes['report']}: {note}")
            if not self.changes["regressions"] and not self.changes["improvements"]:
                _show.out(f"nothing became worse or better since {self.changes['report']}")
        if self.targets:
            _show.out(f"report: {_show.listed([str(target.place) for target in self.targets])}")


def prepare(
    paths: Sequence[Path],
    earlier: Path | None,
    growth: float,
    force: bool,
    *,
    subject: Path,
    standard: str | Path,
    weights: Path | None,
    settings: Settings,
) -> Reports:
    """Everything that can be wrong about reports, found before anything is verified.

    Raises:
        InputError: a report cannot be written there, or the earlier one is none, or is about something else.
    """
    from poolexport.report import against, data, writing
    from poolexport.report.worst import Worst

    targets = writing.targets(paths, force=force)
    before = (earlier, against.read(earlier)) if earlier is not None else None
    facts: dict[str, Any] = {}
    told: dict[str, Any] = {}
    if targets or before:
        facts = data.file_facts(subject)
        told = {"kind": "model", "name": str(standard), "weights": str(weights or ""), "sha256": {}}
        if isinstance(standard, Path):
            told |= {"kind": "file", "sha256": data.file_facts(standard)["sha256"]}
        elif weights is not None and weights.is_file():
            told["sha256"] = {weights.name: data.sha256(weights)}
    if before is not None and facts["inputs"]:
        against.require_same_kind(before[1], facts, told, before[0])
    return Reports(targets, facts, told, settings, Worst(), before, growth)
