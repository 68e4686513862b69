"""Try one corpus of exports on many releases of onnxruntime: ``make test-runtimes``, or this file.

Every release gets an environment of its own in .venv-ort, made from the package registry on first use. The corpus is
exported once, here, with inputs and answers; every release runs it with graph optimisation on and off, and on our
native kernels where they were compiled. What a release lacks or gets wrong must be what poolexport/runtime/traps.py
says, no less and no more, and a release that is too old for the kernels has to say so. Exit code 1 where it is not.
"""

from __future__ import annotations

import argparse
import collections
import pickle
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))

import conftest  # noqa: E402, F401  exports in tests keep what torch would build anew
from poolexport.runtime import kernel_library  # noqa: E402
from poolexport.runtime.traps import LOADS, TRAPS, Release, release, spell  # noqa: E402
from processes import environment  # noqa: E402
from runtimes.corpus import build  # noqa: E402
from runtimes.judging import Job, Line, judge_job, judge_traps, outcomes  # noqa: E402

ENVIRONMENTS = ROOT / ".venv-ort"
#: The last patch of every release there is a row for.
VERSIONS = (
    *("1.20.1", "1.21.1", "1.22.1", "1.23.2", "1.24.4", "1.25.1", "1.26.0", "1.27.0", "1.28.0", "1.29.0", "1.30.0"),
    *("1.31.1", "1.32.0"),
)
#: The newest release that the kernels are too new for.
TOO_OLD = "1.19.2"
SOME = ("1.20.1", "1.22.1", "1.23.2", "1.25.1", "1.28.0", "1.32.0")


def run(python: Path, corpus: Path, results: Path, count: int) -> list[int]:
    """Run all jobs in an environment; the numbers of the jobs that ended its process, which is then started again."""
    results.mkdir(parents=True, exist_ok=True)
    died: list[int] = []
    first = 0
    while first < count:
        words = [python, ROOT / "tests/runtimes/inside.py", corpus, results, first, kernel_library() or ""]
        done = subprocess.run([*map(str, words)], capture_output=True, text=True, check=False, timeout=3600)
        started = results / "started"
        reached = int(started.read_text()) if started.is_file() else -1
        if reached < first:
            raise SystemExit(f"error: {python} could not start: {done.stderr.strip().splitlines()[-1:]}")
        if reached < count:
            died.append(reached)
        first = reached + 1
    return died


def judged(jobs: Sequence[Job], results: Path, died: Sequence[int], version: Release) -> list[Line]:
    """A line for every job, and one for every row of the table of traps."""
    found = list(zip(jobs, outcomes(results, len(jobs), died)))
    lines = [judge_job(job, outcome, version) for job, outcome in found if job.group != "trap"]
    traps = [pair for pair in found if pair[0].group == "trap"]
    return lines + (judge_traps(traps, version, TRAPS) if traps else [])


def refusal(python: Path, library: Path) -> tuple[bool, str]:
    """Whether the runtime of an environment declines the kernels with an error of one sentence, and the sentence."""
    code = "import sys, onnxruntime; onnxruntime.SessionOptions().register_custom_ops_library(sys.argv[1])"
    done = subprocess.run([str(python), "-c", code, str(library)], capture_output=True, text=True, check=False)
    told = (done.stderr.strip().splitlines() or ["nothing"])[-1]
    return done.returncode == 1 and "need onnxruntime 1.20 or newer" in told, told


def table(lines: Sequence[Line], seconds: dict[Release, float]) -> str:
    """A row for every release: how many jobs of every group were right, declared to fail, or wrong."""
    known = ("corpus", "native", "trap", "kernel", "loads")
    groups = [group for group in known if any(line.job.group == group for line in lines)]
    rows = [("release", *(f"{group}: right/declared/WRONG" for group in groups), "seconds")]
    for version, took in seconds.items():
        cells = []
        for group in groups:
            words = collections.Counter(x.word for x in lines if (x.release, x.job.group) == (version, group))
            cells.append("/".join(str(words[word]) for word in ("ok", "declared", "WRONG")))
        rows.append((spell(version), *cells, f"{took:.0f}"))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--versions", nargs="+", default=list(VERSIONS), metavar="VERSION")
    parser.add_argument("--reduced", action="store_true", help="one case of every method, few opsets, few versions")
    parser.add_argument("--only", nargs="+", default=[], metavar="METHOD", help="only these methods, or 'networks'")
    parser.add_argument("--corpus", type=Path, help="keep the corpus in this folder, or use the one that is there")
    options = parser.parse_args(words)
    versions = list(SOME) if options.reduced and options.versions == list(VERSIONS) else options.versions
    pythons = {
        version: environment(ENVIRONMENTS / version, ("numpy<2.5", f"onnxruntime=={version}"))
        for version in versions
        if release(version) in LOADS
    }
    library = kernel_library()
    polite, told = True, "there are no native kernels to try: is there a C++ compiler?"
    if library is not None:
        older = environment(ENVIRONMENTS / TOO_OLD, ("numpy<2.5", f"onnxruntime=={TOO_OLD}"))
        polite, told = refusal(older, library)
    print(f"{TOO_OLD}  {told}" if polite else f"WRONG  {TOO_OLD}  {told}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        corpus = options.corpus or Path(folder) / "corpus"
        start = time.perf_counter()
        if (corpus / "expected.pickle").is_file():
            jobs = pickle.loads((corpus / "expected.pickle").read_bytes())
        else:
            jobs = build(corpus, reduced=options.reduced, only=options.only)
        print(f"{len(jobs)} jobs, exported in {time.perf_counter() - start:.0f} s", flush=True)
        lines: list[Line] = []
        seconds: dict[Release, float] = {}
        for version, python in pythons.items():
            start = time.perf_counter()
            results = Path(folder) / version
            died = run(python, corpus, results, len(jobs))
            lines += judged(jobs, results, died, release(version))
            shutil.rmtree(results)
            seconds[release(version)] = time.perf_counter() - start
    print(table(lines, seconds))
    for line in (wrong := [line for line in lines if line.word == "WRONG"]):
        form = "optimised" if line.job.optimised else "not optimised"
        print(f"WRONG  {spell(line.release)}  {line.job.group}  {line.job.name}  {form}: {line.reason}")
    return 0 if polite and not wrong else 1


if __name__ == "__main__":
    sys.exit(main())
