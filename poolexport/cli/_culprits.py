"""Where a file goes wrong, and the smallest input that shows it: what follows a verification that failed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from poolexport.cli import _show
from poolexport.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from poolexport.proof.steps import Located
    from poolexport.report.data import Settings

#: Culprits that are printed.
MOST = 5


@dataclass(frozen=True)
class Explained:
    """Why a verification failed.

    Args:
        located: the layers to blame; None where they were not looked for, or could not be told.
        witness: the files with the smallest failing input, as a report holds them.
        note: why there is none.
    """

    located: Located | None = None
    witness: dict[str, Any] | None = None
    note: str = ""

    @property
    def culprits(self) -> list[dict[str, Any]]:
        from poolexport.report.data import culprits_of

        return culprits_of(self.located) if self.located is not None else []

    def show(self) -> None:
        """Tell people."""
        if self.located is not None:
            for step in self.located.culprits[:MOST]:
                _show.out(Text.assemble(("GUILTY", "bold red"), f"  {step}"))
            left = len(self.located.culprits) - MOST
            if left > 0:
                _show.out(f"... and {left} more that introduce error")
            if not self.located.culprits:
                _show.out("no layer is wrong by itself: errors add up, or onnxruntime makes them as it optimises")
        if self.note:
            _show.out(self.note)
        if self.witness is not None:
            told = f"witness: {self.witness['file']}; run python {self.witness['script']}"
            _show.out(f"{told} ({self.witness['reason']})")


def explain(
    subject: Path,
    model: nn.Module,
    inputs: Sequence[Tensor],
    settings: Settings,
    witness: Path | None,
    *,
    locating: bool,
    force: bool,
) -> Explained:
    """The layers that introduce error on these inputs, and a witness where one is wished for.

    Raises:
        OutputError: the witness cannot be written.
    """
    from poolexport.proof.locate import locate
    from poolexport.proof.witness import minimise

    bounds = {"factor": settings.factor, "rtol": settings.rtol, "atol": settings.atol, "seed": settings.seed}
    located, note, saved = None, "", None
    try:
        located = locate(subject, model, inputs, **bounds) if locating else None  # type: ignore[arg-type]
    except InputError as error:
        note = f"no layer could be blamed: {error}"
    if witness is not None:
        try:
            found = minimise(subject, model, inputs, **bounds)  # type: ignore[arg-type]
        except InputError as error:
            # what is wrong may be declared only, and seen in no answer
            return Explained(located, None, "; ".join(filter(None, (note, f"no witness: {error}"))))
        data, script = found.save(witness, subject, force=force)
        saved = {
            "file": str(data),
            "script": str(script),
            "shapes": [list(x.shape) for x in found.inputs],
            "reason": found.reason,
        }
    return Explained(located, saved, note)
