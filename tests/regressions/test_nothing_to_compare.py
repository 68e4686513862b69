"""A model full of NaN agreed with its export in every value, and passed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import poolexport


def test_model_that_answers_only_nan_is_refused(tmp_path):
    model = nn.Sequential(nn.Conv2d(1, 2, 3), poolexport.nn.MaxPool2d(2)).eval()
    with torch.no_grad():
        model[0].weight.fill_(float("nan"))
    with pytest.raises(poolexport.InputError, match=r"nothing to compare; 0\.weight holds NaN"):
        poolexport.export(model, torch.randn(1, 1, 8, 8), tmp_path / "net")
    assert list(tmp_path.iterdir()) == []
