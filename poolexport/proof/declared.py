"""Small numbers that a file declares, beside those that torch takes: the epsilons of its normalisations.

Beside a variance of ordinary size an epsilon is below rounding, so that no input tells one from another, and yet it is
what counts in a channel that hardly varies, as after the next training. Variances are weights, which inputs cannot
choose; but both numbers can be read. Only a node whose weights and statistics are, to the last bit, those that torch
hands to one of its normalisations is compared: one that was merged with its neighbours, or written out, is none.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir
from torch import Tensor, nn

from poolexport.errors import ParityError
from poolexport.graph import module_path
from poolexport.pipeline._run import copy_of
from poolexport.pipeline.verify import Check, Verdict, Watch
from poolexport.proof.calls import Calls
from poolexport.proof.graphs import load
from poolexport.proof.kinds import kind_of
from poolexport.runtime import Source
from poolexport.tolerance import Judgement, judge

#: What torch calls the operands of a node behind its first.
OPERANDS = {
    "BatchNormalization": ("weight", "bias", "running_mean", "running_var"),
    "GroupNormalization": ("weight", "bias"),
    "LayerNormalization": ("weight", "bias"),
}
#: Where a node does not say it.
DEFAULT = 1e-5

#: Kind of an operator, and its operands as they are stored.
Key: TypeAlias = "tuple[str, tuple[bytes | None, ...]]"


@dataclass(frozen=True)
class Epsilon:
    """An epsilon that is not the one that torch takes.

    Args:
        path: dotted path of the module; empty for the model itself.
        node: name of the node.
        operator: of the node.
        found: what the node declares.
        wanted: what torch takes.
        judgement: of ``found``.
    """

    path: str
    node: str
    operator: str
    found: float
    wanted: float
    judgement: Judgement


def epsilons(source: Source, model: nn.Module, inputs: Sequence[Tensor], **bounds: float | None) -> list[Epsilon]:
    """The epsilons of a file that are not the model's.

    Args:
        source: a bundle, an .onnx file, or its bytes; of any exporter.
        model: what it was made from, in eval mode; it is not changed.
        inputs: that the model takes.
        bounds: ``factor``, ``rtol`` and ``atol``, as in ``verify``.

    Raises:
        InputError: the model fails on the inputs.
    """
    nodes = [(node, key) for node in load(source).graph if (key := _key_of(node)) is not None]
    if not nodes:
        return []
    reader = _Reader(copy_of(model))
    reader.walk(inputs)
    found = []
    for node, key in nodes:
        calls = reader.calls[key]
        # Several modules may hold the same weights, as fresh ones do.
        own = [call for call in calls if call[0] == module_path(node)] or calls
        declared = node.attributes.get_float("epsilon", DEFAULT)
        judged = [(path, wanted, _judged(declared, wanted, bounds)) for path, wanted in own]
        if judged and not any(judgement.passed for *_, judgement in judged):
            path, wanted, judgement = judged[0]
            found.append(Epsilon(path, node.name or "", node.op_type, declared, wanted, judgement))
    return found


def require_epsilons(
    source: Source,
    model: nn.Module,
    example: Sequence[Tensor],
    verdict: Verdict,
    *,
    watch: Watch | None = None,
    **bounds: float | None,
) -> Verdict:
    """A verdict that also says of epsilons that they are the model's.

    Raises:
        ParityError: one of them is not; the error holds a verdict in which that is a failed check.
    """
    wrong = epsilons(source, model, example, **bounds)
    if not wrong:
        return verdict
    check = Check("declared", verdict.checks[0].shapes, tuple(each.judgement for each in wrong))
    verdict = replace(verdict, checks=(*verdict.checks, check))
    if watch is not None:
        found, wanted = ([np.array([getattr(each, name)]) for each in wrong] for name in ("found", "wanted"))
        watch(check, example, found, wanted)
    more = f" (and {len(wrong) - 1} more like it)" if len(wrong) > 1 else ""
    raise ParityError(
        f"the file does not declare what the model takes, though no answer shows it: "
        f"{wrong[0].path or 'the model itself'}, {wrong[0].node} ({wrong[0].operator}): {wrong[0].judgement.reason}"
        f"{more}; write the file anew",
        verdict,
    )


class _Reader(Calls):
    """Takes down every normalisation that a model calls: module and epsilon, by its operands."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.calls: dict[Key, list[tuple[str, float]]] = defaultdict(list)

    def before(self, first: int, func: Any, args: Any, kwargs: Any) -> None:
        kind = kind_of(func._schema.name)
        names = next((names for operator, names in OPERANDS.items() if kind_of(operator) == kind), None)
        if names is not None:
            given = dict(zip((argument.name for argument in func._schema.arguments), args)) | kwargs
            operands = (given.get(name) for name in names)
            key = kind, tuple(None if x is None else _stored(x.detach().numpy()) for x in operands)
            self.calls[key].append((self.path[-1] if self.path else "", float(given["eps"])))


def _key_of(node: ir.Node) -> Key | None:
    """What a normalisation is known by; None for other nodes, and where its operands are computed."""
    names = OPERANDS.get(node.op_type) if node.domain in ("", "ai.onnx") else None
    if names is None:
        return None
    operands = [node.inputs[k] if k < len(node.inputs) else None for k in range(1, 1 + len(names))]
    stored: list[bytes | None] = []
    for value in operands:
        tensor = ir.convenience.get_const_tensor(value) if value is not None else None
        if value is not None and tensor is None:
            return None
        stored.append(_stored(tensor.numpy()) if tensor is not None else None)
    return kind_of(node.op_type), tuple(stored)


def _stored(x: np.ndarray) -> bytes:
    return f"{x.dtype}{x.shape}".encode() + x.tobytes()


def _judged(found: float, wanted: float, bounds: dict[str, float | None]) -> Judgement:
    """ONNX holds an epsilon in float32, as exact as an answer of that type can be."""
    values = np.array([found], np.float32), np.array([wanted], np.float32), np.array([wanted])
    judgement = judge(*values, **bounds)  # type: ignore[arg-type]
    if judgement.passed:
        return judgement
    reason = f"epsilon is {found:g} in the file and {wanted:g} in the model"
    # No answer was compared, and those that were are right.
    return replace(judgement, reason=reason, finite=False, equal=0.0, ulps=0.0, grade="DEGRADED")
