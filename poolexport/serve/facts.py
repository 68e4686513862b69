"""What is found out about a model file before it is served, and how it is opened and run."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnxruntime as ort

from poolexport.bundle import files, sha256

#: Characters of onnxruntime's own words that are repeated.
TOLD = 300


@dataclass(frozen=True)
class Facts:
    """What was found out about a model file before it was served.

    Args:
        path: of the bundle or .onnx file.
        digests: SHA-256 of each of its files, by name.
        batched: whether the first axis of all inputs and outputs is one axis, proven to be dynamic.
        seconds: that a run on the warm-up input takes.
        elements: numbers in that input.
        steady: whether a run takes as long whatever the values are: no loops, and no whole numbers to steer them.
        gain: how much more the model gets done in one batch than one by one, on one thread.
        measured: numbers in the inputs of that batch.
        verdict: of the export; empty where the file has no manifest.
        replayed: whether the bundle's sample was computed and compared.
    """

    path: str
    digests: Mapping[str, str]
    batched: bool
    seconds: float
    elements: int
    steady: bool
    gain: float
    measured: int
    verdict: str
    replayed: bool


def session_options(threads: int = 1) -> ort.SessionOptions:
    """One thread a run, which waits without turning: measured to get most done where runs are many."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def run_options() -> ort.RunOptions:
    """Options that make onnxruntime give back the memory of the largest batch after each run."""
    options = ort.RunOptions()
    options.log_severity_level = 4
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options


def digests(path: Path) -> dict[str, str]:
    """SHA-256 of the files that a bundle or a model consists of, by name."""
    return {file.name: sha256(file) for file in files(path)}


def stamps(path: Path) -> list[tuple[int, int, int]]:
    """What the system knows about those files, and changes whenever somebody writes or replaces one."""
    found = [os.stat(file) for file in files(path)]
    return [(one.st_ino, one.st_size, one.st_ctime_ns) for one in found]


def said(error: Exception) -> str:
    """onnxruntime's words on one line, without places in anybody's file system; their end, where they are many."""
    text = re.sub(r"\S*/\S*", "", " ".join(str(error).split()))
    text = re.sub(r"^.*(Status Message: |\[ONNXRuntimeError\] : \d+ : \w+ : )", "", text)
    told = ascii(text)[1:-1].strip()
    return (told if len(told) <= TOLD else f"... {told[-TOLD:]}") or type(error).__name__
