"""What an export does not pay for: maps that are kept, a second audit, a third run of what is right."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import poolexport
from poolexport.errors import ParityError
from poolexport.pipeline import verify
from poolexport.pipeline.audit import _digest, _recorded


def test_an_audit_keeps_no_maps():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.ReLU(), nn.MaxPool2d(2))).eval()
    with _recorded(model) as record:
        model(torch.zeros(1, 3, 9, 9))
    assert [*record] == ["0", "1.0", "1.1", "1", ""]
    kept = torch.utils._pytree.tree_leaves(record)
    assert {type(x) for x in kept} == {int, str}


def test_an_export_audits_a_model_once(tmp_path, monkeypatch):
    model, calls = nn.ReLU().eval(), []
    monkeypatch.setattr(verify, "settle", lambda *args: calls.append(args))
    bundle = poolexport.export(model, torch.zeros(1, 3, 5, 5), tmp_path / "net")
    assert bundle.manifest.verdict == "PASS"
    assert not calls
    with pytest.raises(AttributeError):
        poolexport.verify(bundle.path, model)
    assert len(calls) == 1


def test_models_are_rounded_anew_only_where_that_decides(tmp_path, monkeypatch):
    made = []
    shaken = verify.with_shaken_weights

    def counted(*args):
        made.append(args)
        return shaken(*args)

    monkeypatch.setattr(verify, "with_shaken_weights", counted)
    torch.manual_seed(0)
    poolexport.export(nn.Conv2d(3, 4, 3).eval(), torch.randn(1, 3, 9, 9), tmp_path / "right.onnx")
    assert not made
    wrong = nn.Conv2d(3, 4, 3).eval()
    with pytest.raises(ParityError):
        poolexport.verify(tmp_path / "right.onnx", wrong)
    assert len(made) == 1


@pytest.mark.parametrize(
    "other",
    [
        torch.arange(6.0).reshape(3, 2),
        torch.arange(6.0, dtype=torch.float64).reshape(2, 3),
        torch.tensor([[0.0, 1.0, 2.0], [3.0, 5.0, 4.0]]),
        torch.tensor([[0.0, 1.0, 2.0], [3.0, 4.0, 5.0 + 5e-7]]),
    ],
    ids=["shape", "type", "order", "last bit"],
)
def test_checksums_tell_tensors_apart(other):
    x = torch.arange(6.0).reshape(2, 3)
    assert _digest(x) != _digest(other)
    assert _digest(x) == _digest(x.t().contiguous().t())
    for kind in (torch.bool, torch.int64, torch.bfloat16, torch.complex64):
        assert _digest(x.to(kind)) == _digest(x.to(kind).clone())
    assert _digest(torch.tensor(1.0)) != _digest(torch.tensor(2.0))
    assert _digest(torch.ones(0, 3)) == _digest(torch.ones(0, 3))
