"""Facts about operators that graphs are judged by; no torch in here, because files are read without it."""

from __future__ import annotations

import onnx_ir as ir

RANDOM_OPERATORS = {
    "Bernoulli",
    "Multinomial",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
}


def is_random(node: ir.Node) -> bool:
    """Whether a node of the standard operators draws random numbers, or might."""
    return node.op_type in RANDOM_OPERATORS or _training_dropout(node)


def _training_dropout(node: ir.Node) -> bool:
    if node.op_type != "Dropout" or len(node.inputs) < 3 or node.inputs[2] is None:
        return False
    training = ir.convenience.get_const_tensor(node.inputs[2])
    return training is None or bool(training.numpy())
