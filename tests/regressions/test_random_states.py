"""An export that keeps draws once drew from the user's generator, and generators of torch's kept elsewhere moved on."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

import poolexport
from poolexport.pipeline.prepare import prepare

OWN = torch.Generator().manual_seed(3)


class Dropping(nn.Module):
    def forward(self, x):
        return F.dropout(x, 0.5, training=True)


class DrawingElsewhere(nn.Module):
    def forward(self, x):
        return x * torch.rand(x.shape, generator=OWN)


def test_preparing_a_model_that_keeps_its_draws_does_not_draw_from_the_users_generator():
    before = torch.get_rng_state()
    prepare(Dropping().eval(), torch.ones(2, 3, 4, 4), randomness={"(the model itself)": "keep"})
    assert torch.equal(torch.get_rng_state(), before)


def test_an_audit_puts_back_a_generator_that_the_model_does_not_hold():
    before = OWN.get_state()
    found = poolexport.audit(DrawingElsewhere().eval(), torch.ones(2, 3, 4, 4))
    assert {culprit.kind for culprit in found.culprits} == {"torch generator"}
    assert torch.equal(OWN.get_state(), before)
