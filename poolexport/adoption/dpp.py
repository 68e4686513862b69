"""Detail-preserving pooling: the authors' PyTorch file, which needs a compiler that is gone, and ports of it."""

from __future__ import annotations

import math

from poolexport import nn as ours
from poolexport.adoption._entry import Entry, Foreign, Ours, carry


def detail_preserving(found: Foreign) -> list[Ours]:
    rate, reward = found.get("pospowbias.Lambda"), found.get("pospowbias.Alpha")
    channels = rate.numel() if rate.numel() > 1 else None
    layer = ours.DPP2d(channels, exponent_scale=1.0, alpha_max=math.inf)
    carry(layer, {"log_lambda": rate, "log_alpha": reward})
    meaning = "the mean of every 2x2 window, weighted by distance from its average, the exponent not halved"
    notes = ("the authors' layer fails on maps of odd length; ours leaves the last line out",)
    return [Ours(layer, meaning, ((2, channels or 3, 8, 10), (1, channels or 3, 6, 4)), notes)]


ENTRIES = (Entry("DPP", detail_preserving, ("DPP2d",)),)
