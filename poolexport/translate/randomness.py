"""Operators that draw, or that only training has: a file of them answers differently at every run, and is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from poolexport.errors import ModeError, RandomnessError
from poolexport.translate import fractional
from poolexport.translate._original import original, translated
from poolexport.translate._place import current_node, place_of
from poolexport.translate._writing import Write, Writer, arguments, name_of

#: Draw whenever they are called.
DRAWING = (
    *("rand", "rand_like", "randn", "randn_like", "randint", "randint_like", "randperm", "bernoulli", "multinomial"),
    *("normal", "normal_functional", "uniform", "random", "poisson", "binomial", "exponential", "geometric", "cauchy"),
    *("log_normal", "_sample_dirichlet", "_standard_gamma"),
)
#: Draw, or follow statistics of their input, in training only; by the argument that says so.
TRAINING = {
    "dropout": "train",
    "native_dropout": "train",
    "native_batch_norm": "training",
    "_native_batch_norm_legit": "training",
    "_native_batch_norm_legit_functional": "training",
    "instance_norm": "use_input_stats",
    "lstm": "train",
    "gru": "train",
}
#: Of these, the ones that draw; by the argument that says how often.
DROPOUTS = {"dropout": "p", "native_dropout": "p", "lstm": "dropout", "gru": "dropout"}
#: Drops values in eval mode as well, where it is told to.
ATTENTION = torch.ops.aten.scaled_dot_product_attention.default
FRACTIONAL = (torch.ops.aten.fractional_max_pool2d.default, torch.ops.aten.fractional_max_pool3d.default)
KEEP = "or ask for it: translation_table(keep_randomness=True)"


def entries() -> dict[str, Write]:
    return {"aten::rrelu_with_noise_functional": _rrelu}


def refusals(seed: int | None) -> dict[Any, Callable[..., Any]]:
    """What refuses draws and training; with a seed, the samples of a fractional max pooling are drawn once."""
    table: dict[Any, Callable[..., Any]] = {}
    for name in DRAWING:
        for overload in _overloads(name):
            table[overload] = _named(overload, partial(_refuse_draws, overload, seed))
    for name, flag in TRAINING.items():
        for overload in _overloads(name):
            # Without statistics of its own a layer follows its input's in eval mode, too.
            names = {argument.name for argument in overload._schema.arguments}
            # What torch writes in terms of simpler operators is refused by their names.
            drops = name in DROPOUTS and translated(overload)
            if flag in names and (drops or "running_mean" in names):
                table[overload] = _named(overload, partial(_refuse_training, overload, flag))
    table[ATTENTION] = _named(ATTENTION, _refuse_dropping)
    return table


def _overloads(name: str) -> Iterator[Any]:
    packet = getattr(torch.ops.aten, name, None)
    for kind in packet.overloads() if packet is not None else ():
        if not kind.endswith("out"):
            yield getattr(packet, kind)


def _short(overload: Any) -> str:
    name: str = overload._schema.name
    return name.partition("::")[2]


def _named(overload: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    def translate(*args: Any, **kwargs: Any) -> Any:
        return function(arguments(overload, args, kwargs))

    translate.__name__ = name_of(overload)
    return translate


def _refuse_draws(overload: Any, seed: int | None, given: dict[str, Any]) -> Any:
    node = current_node()
    samples = node is not None and bool(node.users) and all(user.target in FRACTIONAL for user in node.users)
    if samples and overload is torch.ops.aten.rand.default:
        if seed is not None:
            return _samples(seed, given["size"])
        raise RandomnessError(f"{place_of(node)}: {fractional.REFUSAL}, {KEEP}")
    raise RandomnessError(
        f"{place_of(node)}: {_short(overload)} draws random numbers, so that the file would answer differently at "
        f"every run; call model.eval(), give the layer a fixed rule for eval mode, {KEEP}"
    )


def _refuse_training(overload: Any, flag: str, given: dict[str, Any]) -> Any:
    name = _short(overload)
    if name in DROPOUTS:
        active = given[flag] is not False and given[DROPOUTS[name]] != 0
        what = "drops values at random"
    else:
        active = bool(given[flag]) and given["running_mean"] is not None
        what = "follows the statistics of its input instead of those it has learned"
    if active:
        raise ModeError(
            f"{place_of(current_node())}: {name} is in training mode, in which it {what}; call model.eval() before "
            f"exporting, {KEEP}"
        )
    return original(overload)(*given.values())


def _refuse_dropping(given: dict[str, Any]) -> Any:
    if given["dropout_p"] != 0:
        raise RandomnessError(
            f"{place_of(current_node())}: {_short(ATTENTION)} drops values at random, in eval mode, too; give it "
            f"dropout_p=0.0 there, {KEEP}"
        )
    return original(ATTENTION)(*given.values())


def _samples(seed: int, size: list[Any]) -> ir.Value:
    """Places of the regions, the same for every map of a batch, (N, C, axes)."""
    writer = Writer(ir.DataType.FLOAT, False, "")
    channels = size[1] if isinstance(size[1], int) else 1
    drawn = writer.op.constant(fractional.draw(seed, channels, size[2]))
    y: ir.Value = writer.op.Expand(drawn, writer.sizes(size))
    return y


def _rrelu(
    writer: Writer, self: ir.Value, noise: ir.Value, lower: float, upper: float, training: bool, **_: Any
) -> Any:
    """In eval mode the slope is the mean of those that training draws from."""
    if training:
        raise ModeError(
            f"{place_of(current_node())}: rrelu is in training mode, in which it draws its slopes; call model.eval() "
            "before exporting"
        )
    op = writer.op
    slope = op.constant(np.array((lower + upper) / 2, op.dtype.numpy()))
    return op.Where(op.Greater(self, op.number(0.0)), self, op.Mul(self, slope)), op.Identity(noise)
