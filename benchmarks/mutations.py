"""How many faults the verifier catches, and how often it names the right layer: ``python benchmarks/mutations.py``.

Faults of the kinds seen in the field are planted into the files of many networks, at several places each. Each wrong
file is verified as any other, and where it fails, the layers to blame are looked for. A fault that changes no answer
on any input that is tried is none, and counted apart; so is one that writes the same formula otherwise, which is told
by running both files in float64 on those inputs. The files without a fault are verified with many seeds: every
failure there is a false alarm, and the exit code 1. Writes benchmarks/results/mutations.json; some minutes.
"""

from __future__ import annotations

import json
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import torch
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import poolexport  # noqa: E402
import poolexport_models  # noqa: E402
from methods import machine  # noqa: E402
from poolexport.errors import InputError, ParityError  # noqa: E402
from poolexport.pipeline import verify as stage  # noqa: E402
from poolexport.proof.declared import require_epsilons  # noqa: E402
from poolexport.proof.locate import locate  # noqa: E402
from poolexport_models import zoo  # noqa: E402
from proof.faults import ALL_FAULTS, Planted, places, plant  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "mutations.json"
#: Reference networks with trained weights, by the method in them, and whole networks with few channels.
TRAINED = ("average", "attention", "blurpool", "gem", "isqrt_cov", "lip", "lp", "median", "s3pool", "softpool", "spp")
WHOLE = ("resnet18", "inception_v3", "segnet", "pspnet", "clip_resnet50", "vgg16")
#: Seeds that the right files are verified with.
SEEDS = 20
#: Smallest share of the faults whose layer has to be named first.
NAMED = 0.95
#: Files whose float64 answers differ by no more than this share of their scale compute the same: float32 cannot show a
#: thousandth of it.
SAME = 1e-10


@dataclass(frozen=True)
class Subject:
    """A network, its inputs, and its file."""

    name: str
    model: nn.Module
    inputs: tuple[Tensor, ...]
    content: bytes


@dataclass
class Tally:
    """What became of the faults that were planted into one network."""

    caught: int = 0
    first: int = 0
    harmless: int = 0
    same: list[str] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)
    misnamed: list[str] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)

    @property
    def planted(self) -> int:
        return self.caught + len(self.missed)


def subjects(only: Sequence[str], folder: Path) -> list[Subject]:
    """The networks, exported with dynamic axes."""
    made: dict[str, Callable[[], tuple[nn.Module, tuple[Tensor, ...], Any]]] = {}
    for name in TRAINED:
        made[name] = lambda name=name: _trained(name)
    for name in WHOLE:
        made[name] = lambda name=name: _whole(name)
    found = []
    for name in track(only or list(made), "exporting"):
        model, inputs, axes = made[name]()
        path = folder / f"{name}.onnx"
        poolexport.export(model, inputs, path, dynamic_shapes=axes, verify=False)
        found.append(Subject(name, model, inputs, path.read_bytes()))
    return found


def _trained(name: str) -> tuple[nn.Module, tuple[Tensor, ...], Any]:
    generator = torch.Generator().manual_seed(0)
    return poolexport_models.load(name).eval(), (torch.rand(2, 1, 16, 20, generator=generator),), {0: "N"}


def _whole(name: str) -> tuple[nn.Module, tuple[Tensor, ...], Any]:
    network = zoo.network(name)
    return network.build(slim=True), network.sample(slim=True), network.axes


class Answers:
    """Remembers the inputs of a verification, and what a file answers to every one of them, up to its bits."""

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.inputs: list[tuple[np.ndarray, ...]] = []

    def __call__(self, check: Any, inputs: Any, answers: Any, truths: Any) -> None:
        self.inputs.append(tuple(x.numpy() for x in inputs))
        told = answers if isinstance(answers, str) else [(x.shape, str(x.dtype), x.tobytes()) for x in answers]
        self.seen.append(hash(repr(told) if isinstance(told, str) else tuple(told)))


def verified(subject: Subject, content: bytes, seed: int = 0) -> tuple[bool, Answers, tuple[Tensor, ...]]:
    """Whether a file passes, its answers, and the inputs that it failed on first."""
    answers, failing = Answers(), []

    def watch(check: Any, inputs: Sequence[Tensor], *rest: Any) -> None:
        answers(check, inputs, *rest)
        if not check.passed and not failing:
            failing.append(tuple(inputs))

    try:
        verdict = stage.verify(content, subject.model, subject.inputs, seed=seed, audited=True, watch=watch)
        require_epsilons(content, subject.model, subject.inputs, verdict, watch=watch)
    except ParityError:
        return False, answers, failing[0]
    except InputError:
        # onnxruntime does not even load it
        return False, Answers(), ()
    return True, answers, ()


def in_float64(content: bytes) -> onnx.ModelProto:
    """A file of float32 numbers that computes in float64, for onnx's own interpreter."""
    model = onnx.load_from_string(content)
    single, double = onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE
    for tensor in model.graph.initializer:
        _widen(tensor)
    for port in (*model.graph.input, *model.graph.output):
        if port.type.tensor_type.elem_type == single:
            port.type.tensor_type.elem_type = double
    todo = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    while todo:
        for attribute in todo.pop().attribute:
            todo += attribute.g.node
            if attribute.HasField("t"):
                _widen(attribute.t)
            elif attribute.name == "to" and attribute.i == single:
                attribute.i = double
            elif attribute.name == "value_float":
                tensor = numpy_helper.from_array(np.float64(attribute.f))
                attribute.CopyFrom(onnx.helper.make_attribute("value", tensor))
    return model


def _widen(tensor: onnx.TensorProto) -> None:
    if tensor.data_type == onnx.TensorProto.FLOAT:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name))


def compute_the_same(one: bytes, other: bytes, inputs: Sequence[tuple[np.ndarray, ...]]) -> bool:
    """Whether two files answer the same in float64."""
    sessions = [ReferenceEvaluator(in_float64(content)) for content in (one, other)]
    for given in inputs:
        doubles = [x.astype(np.float64) if x.dtype == np.float32 else x for x in given]
        pairs = zip(*(session.run(None, dict(zip(session.input_names, doubles))) for session in sessions))
        for a, b in pairs:
            scale = np.abs(a[np.isfinite(a)]).max(initial=0.0)
            if a.shape != b.shape or not np.allclose(a, b, rtol=0.0, atol=SAME * scale, equal_nan=True):
                return False
    return True


def tried(subject: Subject, fault: str, planted: Planted, right: Answers, tally: Tally) -> None:
    """Verify one wrong file, and look for the layer."""
    told = f"{fault} at {planted.path or 'the model itself'}, {planted.node}"
    passed, answers, inputs = verified(subject, planted.content)
    if passed:
        if answers.seen == right.seen:
            tally.harmless += 1
        elif compute_the_same(subject.content, planted.content, right.inputs):
            tally.same.append(told)
        else:
            tally.missed.append(told)
        return
    tally.caught += 1
    tally.kinds[fault] += 1
    if not inputs:
        # a file that does not load has no layer to blame
        tally.first += 1
        return
    try:
        culprits = locate(planted.content, subject.model, inputs).culprits
    except InputError as error:
        tally.misnamed.append(f"{told}: {error}")
        return
    if culprits and planted.path in culprits[0].paths:
        tally.first += 1
    else:
        tally.misnamed.append(f"{told}: named {culprits[0].path if culprits else 'nothing'}")


def spread(count: int, wished: int) -> list[int]:
    """Places from the first to the last."""
    return sorted({round(k) for k in np.linspace(0, count - 1, min(count, wished))}) if count else []


@click.command(help=__doc__)
@click.option("--only", multiple=True, metavar="NETWORK", help="This network; may be given several times.")
@click.option("--places", "wished", default=2, show_default=True, help="Places for every kind of fault in a network.")
@click.option("--seeds", default=SEEDS, show_default=True, help="With which right files are verified.")
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), help="Where to write the results.")
def main(only: Sequence[str], wished: int, seeds: int, output: Path | None) -> None:
    warnings.simplefilter("ignore")
    alarms: dict[str, list[int]] = {}
    tallies: dict[str, Tally] = {}
    with tempfile.TemporaryDirectory() as folder:
        for subject in subjects(only, Path(folder)):
            _, right, _ = verified(subject, subject.content)
            tally = tallies[subject.name] = Tally()
            plan = [
                (fault, place)
                for fault in ALL_FAULTS
                for place in spread(sum(1 for _ in places(subject.content, fault)), wished)
            ]
            for fault, place in track(plan, subject.name, transient=True):
                planted = plant(subject.content, fault, place)
                if planted is not None:
                    tried(subject, fault, planted, right, tally)
            alarms[subject.name] = [
                seed
                for seed in track(range(seeds), f"{subject.name}, right", transient=True)
                if not verified(subject, subject.content, seed)[0]
            ]
    document = report(tallies, alarms, seeds)
    show(tallies, alarms, document)
    if output or not only:
        (output or RESULTS).write_text(json.dumps(document, indent=1) + "\n")
    sys.exit(bool(document["false_alarms"]))


def report(tallies: Mapping[str, Tally], alarms: Mapping[str, Sequence[int]], seeds: int) -> dict[str, Any]:
    """The results, as they are written."""
    caught, planted = sum(t.caught for t in tallies.values()), sum(t.planted for t in tallies.values())
    first = sum(t.first for t in tallies.values())
    kinds: Counter[str] = sum((t.kinds for t in tallies.values()), Counter())
    return {
        "machine": {**machine(), "onnx": onnx.__version__},
        "networks": {
            name: {
                "planted": tally.planted,
                "caught": tally.caught,
                "named_first": tally.first,
                "harmless": tally.harmless,
                "same": tally.same,
                "missed": tally.missed,
                "misnamed": tally.misnamed,
                "false_alarms": list(alarms[name]),
            }
            for name, tally in tallies.items()
        },
        "kinds": dict(sorted(kinds.items())),
        "planted": planted,
        "caught": caught,
        "named_first": first,
        "seeds": seeds,
        "false_alarms": sum(map(len, alarms.values())),
        "met": caught == planted and first >= NAMED * caught and not any(alarms.values()),
    }


def show(tallies: Mapping[str, Tally], alarms: Mapping[str, Sequence[int]], document: Mapping[str, Any]) -> None:
    table = Table("network", "planted", "caught", "named first", "harmless", "false alarms")
    for name, tally in tallies.items():
        figures = (tally.planted, tally.caught, tally.first, tally.harmless, len(alarms[name]))
        table.add_row(name, *map(str, figures))
    table.add_row(
        "all", *(str(document[key]) for key in ("planted", "caught", "named_first")), "", str(document["false_alarms"])
    )
    console = Console()
    console.print(table)
    for name, tally in tallies.items():
        for title, found in (("no fault:", tally.same), ("missed", tally.missed), ("misnamed", tally.misnamed)):
            for one in found:
                console.print(f"{name}: {title} {one}", highlight=False)


if __name__ == "__main__":
    main()
