"""Try a model before it is served, in a process of its own: ``python -m poolexport.serve.check`` < request > facts.

A model file can be made to loop for ever, to take all memory or to read other files. So it is opened, run and measured
first by a process that has little time and memory, and no harm is done where that process is lost.
"""

from __future__ import annotations

import json
import math
import os
import resource
import stat
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from poolexport.bundle import MANIFEST, METADATA_KEY, SAMPLE, WEIGHTS_KEY, Manifest, model_path, sha256
from poolexport.errors import InputError
from poolexport.serve.config import Limits
from poolexport.serve.datatypes import TensorSpec, spec
from poolexport.serve.facts import Facts, digests, run_options, said, session_options, stamps

Array = np.ndarray[Any, np.dtype[Any]]
#: How far a replayed answer may be from the recorded one, in units of rounding at its scale: other processors and
#: releases of onnxruntime add up in another order.
ROUNDINGS = 2048
#: Operators that decide how much is computed by what is computed.
CONTROL = frozenset({"If", "Loop", "Scan", "SequenceMap"})
#: Length of an axis that may change, where nothing else is known; tried one after the other.
LENGTHS = (1, 8, 32, 64, 224)
#: Rows of the batch that is measured against single runs, and seconds that measuring may take.
BATCH, MEASURED = 8, 0.1


def tried(path: Path, limits: Limits) -> Facts:
    """What a process of its own finds out about a model.

    Raises:
        InputError: the model is refused, or the process came to no end.
    """
    request = json.dumps({"path": os.path.abspath(path), "bytes": limits.load_bytes, "seconds": limits.load_seconds})
    try:
        done = subprocess.run(
            [sys.executable, "-m", "poolexport.serve.check"],
            input=request,
            capture_output=True,
            text=True,
            timeout=limits.load_seconds,
        )
    except subprocess.TimeoutExpired:
        raise InputError(
            f"{path} is refused: it could not be opened and run once in {limits.load_seconds:g} s (--load-seconds)"
        ) from None
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        ended = f"signal {-done.returncode}" if done.returncode < 0 else f"code {done.returncode}"
        raise InputError(
            f"{path} is refused: it ended the process that tried it, which had {limits.load_bytes >> 20} MiB of "
            f"memory ({ended})"
        ) from None
    if "refused" in answer:
        raise InputError(f"{path} is refused: {answer['refused']}")
    return Facts(**answer)


def main() -> None:
    """Read a request, try the model, and write what was found out, or why it is refused."""
    request = json.load(sys.stdin)
    resource.setrlimit(resource.RLIMIT_AS, (request["bytes"], request["bytes"]))
    seconds = math.ceil(request["seconds"])
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        print(json.dumps(asdict(facts(Path(request["path"])))))
    except MemoryError:
        print(json.dumps({"refused": "it takes more memory than it may"}))
    except InputError as error:
        print(json.dumps({"refused": str(error)}))
    except ModuleNotFoundError as error:
        print(json.dumps({"refused": f"trying it takes the package {error.name!r}, which is not installed here"}))


def facts(path: Path) -> Facts:
    """Open a model, replay its sample or warm it up, and measure it.

    Raises:
        InputError: it is not what it says it is, or does not compute finite numbers.
    """
    file = model_path(path)
    before, found = stamps(path), digests(path)
    model = _no_foreign_files(file)
    from poolexport.runtime import session

    try:
        opened = session(file, options=session_options())
    except InputError as error:
        raise InputError(f"onnxruntime cannot load it: {said(error)}") from error
    metadata = opened.get_modelmeta().custom_metadata_map
    if path.is_dir():
        _unedited(path, metadata)
    _unedited_weights(file, metadata)
    manifest = Manifest.from_json(metadata[METADATA_KEY]) if METADATA_KEY in metadata else None
    inputs = [spec(argument) for argument in opened.get_inputs()]
    outputs = [spec(argument) for argument in opened.get_outputs()]
    if not inputs or not outputs:
        raise InputError("it has no inputs or no outputs")
    names = [tensor.name for tensor in (*inputs, *outputs)]
    if not all(names) or any(not name.isprintable() for name in names):
        raise InputError("an input or output has a name that is empty or cannot be printed")

    def run(feeds: Mapping[str, Array]) -> list[Array]:
        return list(opened.run(None, feeds, run_options()))

    sample = path / SAMPLE if path.is_dir() else None
    replayed = sample is not None and sample.is_file()
    if sample is not None and replayed:
        feeds = _replay(sample, run, [tensor.name for tensor in outputs], manifest)
    else:
        feeds = _warm_up(inputs, run, manifest)
    if stamps(path) != before:
        raise InputError("a file of it changed while it was tried; try again when it is whole")
    batched = _batched(opened, feeds, manifest)
    seconds = _seconds(lambda: run(feeds))
    gain, measured = 1.0, 0
    if batched and seconds < MEASURED:
        several = {name: np.concatenate([array[:1]] * BATCH) for name, array in feeds.items()}
        one = {name: array[:1] for name, array in feeds.items()}
        measured = sum(array.size for array in several.values())
        gain = BATCH * _seconds(lambda: run(one)) / _seconds(lambda: run(several))
    return Facts(
        path=str(path),
        digests=found,
        batched=batched,
        seconds=seconds,
        elements=sum(array.size for array in feeds.values()),
        steady=all(tensor.dtype.kind == "f" for tensor in inputs) and CONTROL.isdisjoint(_operators(model)),
        gain=round(gain, 3),
        measured=measured,
        verdict=manifest.verdict if manifest else "",
        replayed=replayed,
    )


def _no_foreign_files(file: Path) -> Any:
    """The model as onnx reads it; raises where weights are outside its folder, or not where it says they are."""
    import onnx

    if not file.stat().st_size:
        raise InputError("the file is empty")
    try:
        model = onnx.load(file, load_external_data=False)
    except Exception as error:
        raise InputError(f"it is not an ONNX model ({type(error).__name__})") from error
    if not model.ir_version or not model.graph.output:
        raise InputError("it is not an ONNX model: there is no graph in it")
    folder = file.parent.resolve()
    for tensor in _tensors(model):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        _own_file(folder, entries.get("location", ""), entries.get("offset", "0"), entries.get("length", "0"))
    return model


def _own_file(folder: Path, location: str, offset: str, length: str) -> None:
    where = folder / location
    told = ascii(location[:80])
    if not location or Path(location).is_absolute() or ".." in Path(location).parts or "\0" in location:
        raise InputError(f"its weights are said to be in {told}, which is not a file in its folder")
    for part in (where, *where.parents):
        if part == folder:
            break
        if part.is_symlink():
            raise InputError(f"its weights are said to be in {told}, which is a link to somewhere else")
    try:
        found = os.lstat(where)
    except OSError:
        raise InputError(f"its weights are in {told}, which is missing") from None
    if not stat.S_ISREG(found.st_mode):
        raise InputError(f"its weights are said to be in {told}, which is no ordinary file")
    if found.st_nlink > 1:
        raise InputError(f"its weights are in {told}, which is a hard link: the same file is elsewhere, too")
    if not (offset.isdigit() and length.isdigit()) or int(offset) + int(length) > found.st_size:
        raise InputError(f"its weights are said to be at {offset[:24]} of {told}, {length[:24]} bytes, beyond its end")


def _tensors(model: Any) -> list[Any]:
    """Every tensor in a model, wherever it is: in graphs, their attributes, and functions."""
    found: list[Any] = []
    for graph in _graphs(model):
        found.extend(graph.initializer)
        found.extend(part for sparse in graph.sparse_initializer for part in (sparse.values, sparse.indices))
    for node in _nodes(model):
        for attribute in node.attribute:
            found.extend((attribute.t, *attribute.tensors))
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                found.extend((sparse.values, sparse.indices))
    return found


def _operators(model: Any) -> set[str]:
    return {node.op_type for node in _nodes(model)}


def _nodes(model: Any) -> list[Any]:
    """The nodes of all graphs and functions."""
    inside = [node for graph in _graphs(model) for node in graph.node]
    return inside + [node for function in model.functions for node in function.node]


def _graphs(model: Any) -> list[Any]:
    """The graph, and all graphs in attributes of nodes, of functions too."""
    found = [model.graph]
    waiting = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    while waiting:
        for attribute in waiting.pop().attribute:
            for graph in (attribute.g, *attribute.graphs):
                if graph.ByteSize():
                    found.append(graph)
                    waiting.extend(graph.node)
    return found


def _unedited(folder: Path, metadata: Mapping[str, str]) -> None:
    """Raise where a file of a bundle is not the one that was verified."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        hashes = dict(manifest.pop("sha256"))
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise InputError(f"{MANIFEST} is missing or damaged ({type(error).__name__}); export the bundle anew") from None
    for name, digest in hashes.items():
        if not (folder / name).is_file() or sha256(folder / name) != digest:
            raise InputError(f"{name!a} is missing or was edited after the verification; export the bundle anew")
    if manifest != json.loads(metadata.get(METADATA_KEY, "null")):
        raise InputError(f"{MANIFEST} was edited after the verification; export the bundle anew")


def _unedited_weights(file: Path, metadata: Mapping[str, str]) -> None:
    """Raise where a file of weights beside a model is not the one it was written with."""
    for name, facts in json.loads(metadata.get(WEIGHTS_KEY, "{}")).items():
        if sha256(file.parent / name) != facts["sha256"]:
            raise InputError(f"{name!a} was edited after the verification; export the model anew")


def _replay(sample: Path, run: Any, outputs: list[str], manifest: Manifest | None) -> dict[str, Array]:
    """Compute the bundle's sample; its inputs."""
    with np.load(sample, allow_pickle=False) as arrays:
        recorded = dict(arrays)
    feeds = {name.removeprefix("input/"): array for name, array in recorded.items() if name.startswith("input/")}
    try:
        answers = run(feeds)
    except Exception as error:
        raise InputError(f"its own sample does not run: {said(error)}") from error
    random = manifest.random_outputs if manifest else ()
    for name, answer in zip(outputs, answers):
        wanted = recorded[f"output/{name}"]
        if answer.shape != wanted.shape or answer.dtype != wanted.dtype:
            raise InputError(f"on its own sample, output {name!a} has another shape or type than it was verified with")
        if name not in random:
            _close(name, answer, wanted)
    return feeds


def _close(name: str, answer: Array, wanted: Array) -> None:
    if answer.dtype.kind != "f":
        if not np.array_equal(answer, wanted):
            raise InputError(f"on its own sample, output {name!a} is not what it was verified to be")
        return
    finite = np.isfinite(wanted)
    if not np.array_equal(answer[~finite], wanted[~finite], equal_nan=True) or not np.isfinite(answer[finite]).all():
        raise InputError(f"on its own sample, output {name!a} has NaN or infinities in other places")
    if not finite.any():
        return
    scale = float(np.abs(wanted[finite]).max())
    error = float(np.abs(answer[finite].astype(np.float64) - wanted[finite]).max())
    if error > ROUNDINGS * float(np.finfo(answer.dtype).eps) * scale:
        raise InputError(
            f"on its own sample, output {name!a} is off by {error:.3g} at a scale of {scale:.3g}; this machine or "
            "its onnxruntime computes something else than what was verified"
        )


def _warm_up(inputs: list[TensorSpec], run: Any, manifest: Manifest | None) -> dict[str, Array]:
    """Values and lengths that the model gives finite answers for."""
    shapes = [
        [tuple(length if isinstance(length, int) else free for length in tensor.shape) for tensor in inputs]
        for free in LENGTHS
    ]
    if manifest is not None:
        shapes.insert(0, list(manifest.example_shapes))
    reason = "it has no answer for any input that was tried"
    generator = np.random.default_rng(0)
    for lengths in shapes:
        for values in (generator.standard_normal, np.zeros, np.ones):
            feeds = {tensor.name: _values(values, shape, tensor) for tensor, shape in zip(inputs, lengths)}
            try:
                answers = run(feeds)
            except MemoryError:
                raise
            except Exception as error:
                reason = f"it does not run: {said(error)}"
                continue
            if all(answer.dtype.kind != "f" or np.isfinite(answer).all() for answer in answers):
                return feeds
            reason = "its answers are not finite, whether the input is random, 0 or 1"
    raise InputError(reason)


def _values(values: Any, shape: tuple[int, ...], tensor: TensorSpec) -> Array:
    if tensor.datatype == "BYTES":
        return np.full(shape, "", np.object_)
    return np.asarray(values(shape)).astype(tensor.dtype)


def _batched(session: Any, feeds: Mapping[str, Array], manifest: Manifest | None) -> bool:
    """Whether the first axis of everything was proven dynamic, and each row is answered as if it had come alone."""
    from poolexport.runtime.rows import batch_axis, mixed_rows

    proven = manifest is not None and manifest.verdict == "PASS" and not manifest.random_outputs
    return proven and bool(batch_axis(session)) and not mixed_rows(session, feeds)


def _seconds(run: Any) -> float:
    """Shortest time of a few runs: what a machine that does other things, too, cannot make shorter."""
    times: list[float] = []
    while len(times) < 3 or (sum(times) < MEASURED / 4 and len(times) < 50):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return min(times)


if __name__ == "__main__":
    main()
