"""Every foreign layer that is known, by the name of its class."""

from __future__ import annotations

from torch import nn

from poolexport import catalog
from poolexport.adoption import attention, blur, dpp, heads, lip, rois, second_order, softpool, torch_nn, windows
from poolexport.adoption._entry import Entry

ENTRIES: tuple[Entry, ...] = (
    *torch_nn.ENTRIES,
    *heads.ENTRIES,
    *windows.ENTRIES,
    *blur.ENTRIES,
    *attention.ENTRIES,
    *softpool.ENTRIES,
    *lip.ENTRIES,
    *dpp.ENTRIES,
    *rois.ENTRIES,
    *second_order.ENTRIES,
)


def entry_for(module: nn.Module) -> Entry | None:
    """The entry of a foreign layer, or None: it is unknown, or one of ours, or we have no such layer."""
    if catalog.method_of(module) is not None:
        return None
    return next((entry for entry in ENTRIES if entry.fits(module) and catalog.layers().keys() >= set(entry.ours)), None)
