"""The models that every runtime is tried on, exported once, with inputs and the answers to them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from torch import nn

from conformance.lab import named_axes
from poolexport import catalog, stress
from poolexport.errors import ExportError
from poolexport.method import Case, Method
from poolexport.pipeline import target
from poolexport.pipeline._state import tensors_of
from poolexport.pipeline.convert import convert
from poolexport.pipeline.export import export
from poolexport.pipeline.lower import lower
from poolexport.pipeline.optimise import optimise
from poolexport.pipeline.prepare import prepare
from poolexport.runtime.kernels import DOMAIN, kernel_operators, stem
from poolexport.runtime.traps import LOADS, TRAPS
from runtimes.judging import Job, save
from runtimes.kernels import bare, probes
from runtimes.witnesses import WITNESSES

DTYPES = {"float32": torch.float32, "float64": torch.float64, "float16": torch.float16}
#: Opsets of the first case of every method, beside the default.
OPSETS = (17, 18, 21, 23, 26, 28)
NHW = {0: "N", 2: "H", 3: "W"}


@dataclass(frozen=True, eq=False)
class Entry:
    """A model, its inputs, and the forms and opsets to export it in."""

    name: str
    model: nn.Module
    inputs: tuple[tuple[torch.Tensor, ...], ...]
    axes: Sequence[dict[int, str]]
    forms: tuple[bool, ...] = (False, True)
    opsets: tuple[int, ...] = ()
    atol: float = 0.0


def build(folder: Path, *, reduced: bool, only: Sequence[str] = ()) -> list[Job]:
    """Write the whole corpus into a folder and return its jobs."""
    folder.mkdir(parents=True, exist_ok=True)
    jobs: list[Job] = []
    for entry in entries(reduced=reduced, only=only):
        jobs += list(_exported(entry, folder, len(jobs)))
    if not only:
        jobs += list(_traps(folder))
        jobs += list(_kernels(folder))
    save(folder, jobs)
    return jobs


def entries(*, reduced: bool, only: Sequence[str] = ()) -> Iterator[Entry]:
    """The first case of every method and rank, the layers of torch, and whole networks."""
    for method in catalog.methods().values():
        if only and method.name not in only:
            continue
        for case in method.cases:
            if case is not next(c for c in method.cases if c.rank == case.rank):
                continue
            first = case is method.cases[0]
            if reduced and not first:
                continue
            opsets = ((17, 28) if reduced else OPSETS) if first else ()
            yield _layer(method, case, "float32", (False, True), opsets)
            if not reduced and first:
                for dtype in method.graph_dtypes:
                    if dtype != "float32":
                        yield _layer(method, case, dtype, (False,), ())
    if not only or "networks" in only:
        yield from _networks(reduced)


def _layer(method: Method, case: Case, dtype: str, forms: tuple[bool, ...], opsets: tuple[int, ...]) -> Entry:
    layer = method.build(case, DTYPES[dtype])

    def inputs(regime: str, shape: tuple[int, ...]) -> tuple[torch.Tensor, ...]:
        return tuple(torch.from_numpy(a) for a in method.inputs(case, stress.draw(regime, shape, dtype)))

    batch, channels, *spatial = case.shape
    others = [(batch + 1, channels, *(n + 2 + axis for axis, n in enumerate(spatial))), (1, channels, *spatial)]
    drawn = [inputs("normal", case.shape), inputs("ties", case.shape)]
    for shape in others:
        example = inputs("normal", shape)
        try:
            with torch.no_grad():
                layer(*example)
        except ValueError:
            continue
        drawn.append(example)
    axes = named_axes(method, drawn[0])
    atol = case.condition * float(np.finfo(np.float64).eps)
    return Entry(f"{method.name} {case.rank}d {dtype}", layer, tuple(drawn), axes, forms, opsets, atol)


def _networks(reduced: bool) -> Iterator[Entry]:
    torch.manual_seed(0)
    image = torch.randn(2, 3, 17, 19)
    others = (image, torch.randn(1, 3, 22, 15), -torch.rand(3, 3, 17, 19))
    conv = nn.Conv2d(3, 8, 3)
    nets: dict[str, nn.Module] = {
        "max and average": nn.Sequential(conv, nn.ReLU(), nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(2)),
        "average, ceil_mode": nn.Sequential(nn.AvgPool2d(3, 2, 1, ceil_mode=True)),
        "max, ceil_mode": nn.Sequential(nn.MaxPool2d(3, 2, 1, ceil_mode=True)),
        "border and max": nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.MaxPool2d(2)),
        "border and average": nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.AvgPool2d(2)),
        "LP": nn.Sequential(conv, nn.Sigmoid(), nn.LPPool2d(2, 2)),
        "plane statistics": nn.Sequential(conv, nn.GroupNorm(2, 8), nn.ReLU(), nn.AdaptiveAvgPool2d(1)),
        "batch norm": nn.Sequential(conv, nn.BatchNorm2d(8), nn.Hardswish(), nn.AdaptiveMaxPool2d(1), nn.Flatten()),
        "resize": nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear"), nn.MaxPool2d(2)),
    }
    for name, net in nets.items():
        opsets = (17, 28) if reduced else OPSETS
        yield Entry(name, net.eval(), tuple((x,) for x in others), [NHW], (False,), opsets)
    from poolexport_models import load

    for name in ("softpool", "s3pool") if reduced else ("softpool", "s3pool", "stochastic", "lip", "fractional_max"):
        net = load(name)
        yield Entry(f"network of {name}", net, ((torch.rand(2, 1, 32, 32),), (torch.rand(5, 1, 32, 32),)), [{0: "N"}])


def _exported(entry: Entry, folder: Path, start: int) -> Iterator[Job]:
    expected = [_answers(entry.model, inputs) for inputs in entry.inputs]
    names = [f"x{i}" for i in range(len(entry.inputs[0]))]
    feeds = []
    for number, inputs in enumerate(entry.inputs):
        feeds.append(f"{start}-{number}.npz")
        np.savez(folder / feeds[-1], **{name: x.numpy() for name, x in zip(names, inputs)})
    for opset in (None, *entry.opsets):
        prepared = prepare(entry.model, entry.inputs[0], dynamic_shapes=entry.axes, input_names=names, opset=opset)
        raw = ir.to_proto(export(prepared)).SerializeToString()
        for portable in entry.forms[:1] if opset else entry.forms:
            graph = optimise(lower(ir.from_proto(_parse(raw)), portable=portable))
            try:
                graph = convert(graph, prepared.opset)
            except ExportError as error:
                print(f"not exported: {entry.name}, opset {prepared.opset}: {error}", flush=True)
                continue
            faults = {release: tuple(target.faults(graph, release)) for release in LOADS}
            model = f"{start}-{prepared.opset}-{portable}.onnx"
            (folder / model).write_bytes(ir.to_proto(graph).SerializeToString())
            name = f"{entry.name}, opset {prepared.opset}{', inlined' if portable else ''}"
            called = {node.op_type for node in graph.graph if node.domain == DOMAIN}
            operators = tuple(sorted(name for name in called if stem(name) in kernel_operators()))
            for optimised in (True, False):
                for feed, answers in zip(feeds, expected):
                    job = Job("corpus", name, model, feed, optimised, prepared.opset, {}, answers, faults)
                    job = replace(job, atol=entry.atol)
                    yield job
                    if operators and optimised and opset is None:
                        yield replace(job, group="native", operators=operators, faults={})


def _parse(raw: bytes) -> object:
    import onnx

    return onnx.ModelProto.FromString(raw)


def _answers(model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[object, ...]:
    """For every output torch's answer, the truth, and the truth for inputs that are rounded differently."""
    precise = copy.deepcopy(model).double()
    generator = torch.Generator().manual_seed(0)

    def moved(x: torch.Tensor) -> torch.Tensor:
        signs = torch.randint(0, 2, x.shape, generator=generator) * 2 - 1
        return x.double() * (1 + torch.finfo(x.dtype).eps * signs) if x.is_floating_point() else x

    double = tuple(x.double() if x.is_floating_point() else x for x in inputs)
    with torch.no_grad():
        runs = [tensors_of(m(*x)) for m, x in ((model, inputs), (precise, double), (precise, map(moved, inputs)))]
    return tuple(tuple(t.numpy() for t in each) for each in zip(*runs, strict=True))


def _traps(folder: Path) -> Iterator[Job]:
    for row, trap in enumerate(TRAPS):
        for number, trial in enumerate(WITNESSES[trap.name]()):
            stem = f"trap-{row}-{number}"
            (folder / f"{stem}.onnx").write_bytes(trial.model)
            np.savez(folder / f"{stem}.npz", **trial.feed)
            for optimised in (True, False):
                files = (f"{stem}.onnx", f"{stem}.npz")
                yield Job("trap", trap.name, *files, optimised, trial.opset, {}, (trial.expected,), {}, trial.rtol)


def _kernels(folder: Path) -> Iterator[Job]:
    for number, (operator, dtype, opset, content) in enumerate(probes()):
        (folder / f"kernel-{number}.onnx").write_bytes(content)
        detail = {"operator": operator, "dtype": dtype}
        name = f"{operator} in {dtype}, opset {opset}"
        yield Job("kernel", name, f"kernel-{number}.onnx", "", False, opset, detail)
    newest_opset, newest_ir = (max(each) for each in zip(*LOADS.values()))
    for opset, version in (*((o, 8) for o in range(17, newest_opset + 2)), *((18, v) for v in range(8, newest_ir + 2))):
        (folder / f"loads-{opset}-{version}.onnx").write_bytes(bare(opset, version))
        detail = {"ir_version": version}
        yield Job("loads", f"opset {opset}, IR {version}", f"loads-{opset}-{version}.onnx", "", True, opset, detail)
