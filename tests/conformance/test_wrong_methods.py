"""Each check catches the kind of mistake it is there for: methods and operators that are wrong on purpose."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from conformance import checks
from conformance.lab import Specimen
from conformance.ledger import CELL, empty_cells
from poolexport import catalog
from poolexport.method import Case, Limit, Method
from poolexport_ops import operators

GOOD = catalog.methods()["softpool"]
CASE = Case("padded", {"kernel_size": 3, "stride": 2, "padding": 1}, shape=(2, 3, 9, 11))


def with_forward(forward: Callable[[Any, Tensor], Tensor]) -> Method:
    """The good method with another forward."""
    right = GOOD.layer(2)
    wrong = type(right.__name__, (right,), {"forward": forward, "__module__": right.__module__, "right": right.forward})
    return dataclasses.replace(GOOD, layers=(wrong,), cases=(CASE,))


def swapped_pads(self, x):
    return self.right(x.flip(-1)).flip(-1) if x.shape[-1] % 2 == 0 else self.right(x.roll(1, -1))


def off_by_one(self, x):
    y = self.right(x)
    return torch.cat([y[..., :1], y[..., :-1]], dim=-1)


def unstable(self, x):
    pool = torch.nn.functional.avg_pool2d
    return pool(x * x.exp(), 3, 2, 1) / pool(x.exp(), 3, 2, 1)


def dropped_epsilon(self, x):
    y = self.right(x)
    return y * (y / y)


def detached(self, x):
    return self.right(x.detach()) + 0.5 * x.sum()


def random_in_training(self, x):
    return self.right(x) * (1 + self.training * torch.rand(()))


def random_in_eval(self, x):
    return self.right(x) + 1e-3 * torch.rand(())


def frozen_size(self, x):
    y = self.right(x)
    return y[..., :5, :6] if torch.onnx.is_in_onnx_export() else y


def traced_branch(self, x):
    return self.right(x) * (1.01 if torch.onnx.is_in_onnx_export() else 1.0)


@pytest.mark.parametrize(
    ("check", "forward", "message"),
    [
        (checks.follows_reference, swapped_pads, "Not equal to tolerance"),
        (checks.follows_reference, off_by_one, "Not equal to tolerance"),
        (checks.survives_extremes, unstable, "nan"),
        (checks.follows_reference, dropped_epsilon, "nan"),
        (checks.onnx_follows_torch, traced_branch, "exceeds"),
        (checks.onnx_follows_torch, frozen_size, "shape"),
        (checks.inlined_follows_torch, traced_branch, "exceeds"),
        (checks.trains, detached, "Jacobian mismatch"),
        (checks.trains, random_in_training, "random in training"),
        (checks.repeats_in_eval, random_in_eval, "Arrays are not equal"),
        (checks.lives_in_a_network, traced_branch, "does not compute what the model computes"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_check_catches(check, forward, message):
    method = with_forward(forward)
    with pytest.raises(Exception, match=message):
        check(method, CASE, Specimen)


def test_every_check_passes_the_method_that_the_faults_are_planted_in():
    method = with_forward(lambda self, x: self.right(x))
    for name, check in checks.CHECKS.items():
        if name not in checks.ONCE:
            check(method, CASE, Specimen)


def test_undeclared_operator_is_caught():
    with pytest.raises(AssertionError, match="not on the card"):
        checks.leaves_expected_operators(dataclasses.replace(GOOD, operators=()), CASE, Specimen)


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        (Limit({"kernel_size": 2}, ValueError, "kernel_size must be"), "None instead of ValueError"),
        (Limit({"kernel_size": 0}, TypeError, "kernel_size must be"), "instead of TypeError"),
        (Limit({"kernel_size": 0}, ValueError, "another message"), "kernel_size must be a positive int"),
    ],
    ids=["not-refused", "other-error", "other-message"],
)
def test_broken_limit_is_caught(limit, message):
    with pytest.raises(AssertionError, match=message):
        checks.refuses_what_it_says(dataclasses.replace(GOOD, limits=(limit,)), CASE, Specimen)


def test_missing_documentation_is_caught():
    bare = type("BarePool2d", (torch.nn.Module,), {"__doc__": "Nothing said."})
    with pytest.raises(AssertionError, match="lacks"):
        checks.is_documented(dataclasses.replace(GOOD, layers=(bare,)), CASE, Specimen)


def users_of(name: str) -> tuple[Method, Case]:
    """A method and case that leave the named operator in the graph."""
    for method in catalog.methods().values():
        for case in method.cases:
            if any(operator.name == name for operator in method.operators):
                graph = Specimen(method, case).graph(False)
                if any(node.op_type == name for node in graph.graph.node):
                    return method, case
    raise AssertionError(f"no method uses {name}")


@pytest.mark.parametrize("name", sorted(operators()))
def test_flipped_sign_in_an_onnx_body_is_caught(name, monkeypatch):
    method, case = users_of(name)
    right = operators()[name].onnx_form

    def wrong(op, *inputs, **attributes):
        results = right(op, *inputs, **attributes)
        return (op.Neg(results[0]), *results[1:]) if isinstance(results, tuple) else op.Neg(results)

    monkeypatch.setattr(operators()[name], "onnx_form", wrong)
    for check in (checks.onnx_follows_torch, checks.inlined_follows_torch):
        with pytest.raises(AssertionError, match=r"exceeds|NaN or infinite"):
            check(method, case, Specimen)


def test_softmax_pool_without_the_window_shift_is_caught(monkeypatch):
    from poolexport_ops._body import total
    from poolexport_ops._window import Window

    def unshifted(op, x, logits, **attributes):
        window = Window.of(**attributes)
        weights = [op.Exp(score) for score in op.cells(logits, window, -float("inf"))]
        values = op.cells(x, window, 0.0)
        return op.Div(total(op, [op.Mul(w, v) for w, v in zip(weights, values)]), total(op, weights))

    monkeypatch.setattr(operators()["SoftmaxPool"], "onnx_form", unshifted)
    with pytest.raises(AssertionError, match="NaN or infinite"):
        checks.onnx_follows_torch(GOOD, CASE, Specimen)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        checks.survives_extremes(GOOD, CASE, Specimen)


def test_ledger_reports_a_check_that_did_not_run():
    class Report:
        def __init__(self, cell: str) -> None:
            self.user_properties = [(CELL, cell)]

    cells = [f"{method} {check}" for method in catalog.methods() for check in checks.CHECKS]
    assert empty_cells([Report(cell) for cell in cells]) == []
    assert empty_cells([Report(cell) for cell in cells[1:]]) == cells[:1]
    assert empty_cells([]) == cells
