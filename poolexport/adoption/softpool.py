"""The SoftPool package: one class for two functions."""

from __future__ import annotations

from dataclasses import replace

from poolexport import nn as ours
from poolexport.adoption._entry import Entry, Foreign, Ours, around
from poolexport.adoption._proof import agrees
from poolexport.errors import InputError
from poolexport_ops import per_axis

DIFFERENT = "on the CPU the package computes another function; its CUDA function cannot be run here"


def soft_pool(found: Foreign) -> list[Ours]:
    rank = int(type(found.module).__name__[-2])
    kernel = per_axis("kernel_size", found.get("kernel_size"), rank, 1)
    stride = kernel if found.get("stride") is None else per_axis("stride", found.get("stride"), rank, 1)
    kind, shapes = getattr(ours, f"SoftPool{rank}d"), around(kernel, stride)
    notes = []
    if rank == 3:
        notes.append("the package's CUDA function for volumes looks at other cells than those of the window")
    elif stride != kernel:
        notes.append("the package's CUDA function can mix up rows where the stride is not the kernel size")
    paper = Ours(
        kind(kernel, stride),
        "every channel weighed by itself, as in the paper and the package's CUDA function",
        shapes,
        tuple(notes),
        name="per_channel",
    )
    shared = "all channels weighed by the sum of their exponentials, as by the package on the CPU"
    summed = [
        Ours(
            kind(kernel, stride, channel_weights="summed", clamp_negative=clamp),
            f"{shared}{', and negative answers dropped' if clamp else ''}",
            shapes,
            name="summed_clamped" if clamp else "summed",
        )
        for clamp in (False, True)
    ]
    in_place = found.get("force_inplace", False)
    if in_place and found.choice is None:
        return [*summed, paper]
    if found.choice is None and not agrees(found.module, paper):
        raise InputError(
            "two functions have this name: on a GPU every channel is weighed by itself, as in the paper; on the CPU "
            "all channels share the sum of their exponentials. Choose the one that the weights were trained with: "
            f"{found.chosen('per_channel')} for the GPU, 'summed' for the CPU, or 'summed_clamped' for versions that "
            "drop negative answers there"
        )
    if any(agrees(found.module, other) for other in summed):
        paper = replace(paper, if_different=DIFFERENT)
    return [paper, *summed]


ENTRIES = tuple(Entry(f"SoftPool{rank}d", soft_pool, (f"SoftPool{rank}d",)) for rank in (1, 2, 3))
