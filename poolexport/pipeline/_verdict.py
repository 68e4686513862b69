"""What a verification found: every check, and the verdict over all of them."""

from __future__ import annotations

from dataclasses import dataclass

from poolexport.tolerance import Judgement, worst


@dataclass(frozen=True)
class Check:
    """One input tried: which values, at which shapes, how every output was judged, and how the file was run.

    What does not count says how the file answers to NaN and infinities, and no more.
    """

    values: str
    shapes: tuple[tuple[int, ...], ...]
    judgements: tuple[Judgement, ...]
    runtime: str = ""
    counts: bool = True

    @property
    def passed(self) -> bool:
        return all(judgement.passed for judgement in self.judgements)

    @property
    def answered(self) -> bool:
        """Whether the file gave any answer."""
        return all(judgement.grade != "REFUSED" for judgement in self.judgements)

    @property
    def relative_error(self) -> float:
        return max((j.error / j.scale if j.scale > j.error else j.error for j in self.judgements), default=0.0)

    @property
    def reason(self) -> str:
        shapes = ", ".join("x".join(map(str, shape)) for shape in self.shapes)
        reasons = "; ".join(j.reason for j in self.judgements if j.reason)
        runtime = f" ({self.runtime})" if self.runtime else ""
        return f"{self.values} values at {shapes}{runtime}: {reasons}"


@dataclass(frozen=True)
class LeftOut:
    """A check that was planned and not made, because the time was over: its shapes are None where nobody looked yet."""

    values: str
    shapes: tuple[tuple[int, ...], ...] | None
    runtime: str = ""


@dataclass(frozen=True)
class Verdict:
    """Every check that was made.

    Args:
        checks: the inputs tried.
        skipped: shapes that the model itself refuses, with its reason.
        truth: "float64", or "float32" where the model cannot run in float64; "the second file" where there is no model.
        bound: how far an answer was allowed to be from the truth.
        random: names of the outputs that the file draws; of those, only shape and type were compared.
        left_out: checks that were planned and not made, because the time was over.
        untried: ways of running the file that were not tried, each with the reason.
    """

    checks: tuple[Check, ...]
    skipped: tuple[str, ...] = ()
    truth: str = "float64"
    bound: str = ""
    random: tuple[str, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    untried: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every output was compared, as often as was planned, and is right."""
        return self.word == "PASS"

    @property
    def word(self) -> str:
        """One of "PASS", "FAIL", and "UNVERIFIED": nothing is wrong, but not everything was compared.

        That is so where outputs are random, and where the time was over before all checks were made.
        """
        if not self.checks or self.failures:
            return "FAIL"
        return "UNVERIFIED" if self.random or self.left_out else "PASS"

    @property
    def grade(self) -> str:
        """The worst grade of all answers, one of ``tolerance.GRADES``."""
        return worst(judgement.grade for check in self.checks if check.counts for judgement in check.judgements)

    @property
    def failures(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if check.counts and not check.passed)

    @property
    def remarks(self) -> tuple[Check, ...]:
        """Checks that do not count, on which the file answers otherwise than the model."""
        return tuple(check for check in self.checks if not check.counts and not check.passed)

    @property
    def worst_error(self) -> float:
        """Largest error against the truth, relative to the scale of its output."""
        return max((check.relative_error for check in self.checks if check.counts), default=0.0)
