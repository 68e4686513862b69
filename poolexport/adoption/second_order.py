"""Second-order pooling: fast-MPN-COV's modules, and compact bilinear pooling of the authors of several ports.

Hashes and signs are read from the matrices that a layer computes with; seeds and lists beside them say less.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from poolexport import nn as ours
from poolexport.adoption._entry import Entry, Foreign, Ours, Unlike, carry, planes
from poolexport.errors import InputError

REDUCTION = "conv_dr_block"
NORMS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
PLAIN: dict[str, Any] = {"signed_sqrt": False, "norm": "none"}
SUMS = "sums of the signed products of two maps' channels, by bin"


def covariance(found: Foreign) -> list[Ours]:
    """MPNCOV."""
    is_sqrt, is_vec = bool(found.get("is_sqrt")), bool(found.get("is_vec"))
    # Of the package's loop the first and the last step always run.
    steps = max(found.get("iterNum"), 1)
    reduced = found.get("dr")
    size = None if reduced is None else found.get(f"{REDUCTION}.0.in_channels")
    layer = ours.ISQRTCOVPool2d(steps, is_sqrt, is_vec, input_dim=size, dimension_reduction=reduced)
    if reduced is not None:
        _carry_reduction(layer, found)
    root = f"{steps} steps towards the root of the covariance" if is_sqrt else "the covariance"
    form = "its upper triangle" if is_vec else "the whole matrix"
    before = f", after a convolution to {reduced} channels" if reduced is not None else ""
    return [Ours(layer, f"{root}, {form}{before}", planes(2, size or 5))]


def _carry_reduction(layer: nn.Module, found: Foreign) -> None:
    """The 1x1 convolution, the normalisation and its statistics."""
    convolution = found.get(f"{REDUCTION}.0")
    plain = {"kernel_size": (1, 1), "stride": (1, 1), "padding": (0, 0), "groups": 1}
    if any(getattr(convolution, name) != value for name, value in plain.items()) or convolution.bias is not None:
        raise Unlike("its convolution is not 1x1 with stride 1 and without bias")
    if not found.get(f"{REDUCTION}.1.track_running_stats") or not found.get(f"{REDUCTION}.1.affine"):
        raise Unlike("its batch normalisation has no statistics or no weights of its own")
    # Caps and steps far from the inputs of a comparison would not show in it.
    if len(found.get(REDUCTION)) != 3 or type(found.get(f"{REDUCTION}.2")) is not nn.ReLU:
        raise Unlike("what follows its batch normalisation is not a ReLU alone")
    tensors = {f"{REDUCTION}.0.weight": found.get(f"{REDUCTION}.0.weight")}
    tensors |= {f"{REDUCTION}.1.{name}": found.get(f"{REDUCTION}.1.{name}") for name in NORMS}
    carry(layer, tensors)
    norm = layer.get_submodule(f"{REDUCTION}.1")
    for name in ("eps", "momentum"):
        setattr(norm, name, found.get(f"{REDUCTION}.1.{name}"))


def bilinear(found: Foreign) -> list[Ours]:
    """BCNN."""
    eps, is_vec = float(found.get("thresh")), bool(found.get("is_vec"))
    root: dict[str, Any] = {"root": "jump", "root_eps": eps} if eps else {"root": "sign"}
    layer = ours.BilinearPool2d(reduction="mean", is_vec=is_vec, per_column=not is_vec, **root)
    norm = "divided by its norm" if is_vec else "every column of the matrix divided by its norm"
    return [Ours(layer, f"means of the products of all pairs of channels, rooted, {norm}", planes(2, 5))]


def compact(found: Foreign) -> list[Ours]:
    """CBP."""
    eps, channels, bins = float(found.get("thresh")), found.get("input_dim"), found.get("projDim")
    matrices = found.get("sparseM")
    options = _sketches(matrices, (channels, channels), bins)
    layer = ours.CompactBilinearPool2d(channels, bins, sqrt_eps=eps, **options).to(matrices[0].device)
    notes = (
        "bins into which no products fall are 0; the package's transform leaves roundings there, which its root makes "
        f"numbers of up to {eps**0.5:.1g} over the norm, of either sign",
        "hashes and signs are in the state dict now",
    )
    meaning = "sums of the signed products of all pairs of channels, by bin, rooted and divided by their norm"
    return [Ours(layer, meaning, planes(2, channels), notes, unit_vectors=True)]


def compact_of_two(found: Foreign) -> list[Ours]:
    """CompactBilinearPooling: one name, several ports, told apart by what they hold."""
    if found.get("sketch1.h", None) is not None:
        return [_of_vectors(found)]
    if found.get("sketch1", None) is not None:
        return _of_parameters(found)
    sizes, bins = (found.get("input_dim1"), found.get("input_dim2")), found.get("output_dim")
    matrices = [found.get(f"sparse_sketch_matrix{end}") for end in (1, 2)]
    whole = bool(found.get("sum_pool"))
    options = _sketches(matrices, sizes, bins)
    layer = ours.CompactBilinearFusion2d(*sizes, bins, sum_pool=whole, channels_last=not whole, **options, **PLAIN)
    layer.to(matrices[0].device)
    return [_two_maps(layer, whole, sizes, ("hashes and signs are in the state dict now",))]


def _of_parameters(found: Foreign) -> list[Ours]:
    """A port whose matrices are parameters; copies differ in a factor and in where the bins are."""
    matrices = [found.get(f"sketch{end}") for end in (1, 2)]
    bins, whole = found.get("output_dim"), bool(found.get("sum_pool"))
    sizes = (len(matrices[0]), len(matrices[1]))
    candidates = []
    for factor, scaled in ((1, ""), (bins, "_times_output_dim")):
        options = _sketches(matrices, sizes, bins)
        options["rand_s_1"] = factor * options["rand_s_1"]
        for last in (False,) if whole else (False, True):
            layer = ours.CompactBilinearFusion2d(*sizes, bins, sum_pool=whole, channels_last=last, **options, **PLAIN)
            name = f"{'bins_last' if last else 'bins_first'}{scaled}"
            layer.to(matrices[0].device)
            candidates.append(_two_maps(layer, whole, sizes, (), name))
    return candidates


def _two_maps(layer: nn.Module, whole: bool, sizes: tuple[int, int], notes: tuple[str, ...], name: str = "") -> Ours:
    place = "over all locations" if whole else "at every location"
    return Ours(layer, f"{SUMS}, {place}", planes(2, sizes[0]), notes, name=name, companions=_other(sizes[1]))


def _of_vectors(found: Foreign) -> Ours:
    if found.choice != "two_vectors":
        raise InputError(
            "it takes inputs of any number of axes, channels last, and one input or two, and which ones a network "
            f"gives it does not show; ours takes two, of vectors (N, C): {found.chosen('two_vectors')} where that is "
            "what it is given"
        )
    hashes, signs = ([found.get(f"sketch{end}.{name}") for end in (1, 2)] for name in "hs")
    sizes = (len(hashes[0]), len(hashes[1]))
    options = {f"rand_h_{end}": hashes[end - 1].cpu().numpy() for end in (1, 2)}
    options |= {f"rand_s_{end}": signs[end - 1].cpu().numpy() for end in (1, 2)}
    layer = ours.MultimodalCompactBilinear0d(*sizes, found.get("output_size"), dropout=0.0, **options, **PLAIN)
    layer.to(signs[0].device)
    meaning = "sums of the signed products of two vectors, by bin"
    shapes = ((5, sizes[0]), (1, sizes[0]))
    notes = ("the package's layer also takes one input, and maps with the channels last; ours takes two vectors",)
    return Ours(layer, meaning, shapes, notes, name="two_vectors", companions=_other(sizes[1]))


def _other(channels: int) -> Callable[[Tensor], tuple[Tensor]]:
    """A second input beside the first, with channels of its own."""

    def companion(x: Tensor) -> tuple[Tensor]:
        shape = (x.shape[0], channels, *x.shape[2:])
        drawn = torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        return (drawn.to(x.dtype),)

    return companion


def _sketches(matrices: Any, sizes: tuple[int, int], bins: int) -> dict[str, Any]:
    """Hashes and signs of both sides, from matrices (channels, bins) with one number a row."""
    options: dict[str, Any] = {}
    for end, (matrix, size) in enumerate(zip(matrices, sizes, strict=True), 1):
        dense = (matrix.to_dense() if matrix.layout != torch.strided else matrix).detach().cpu()
        if tuple(dense.shape) != (size, bins):
            raise Unlike(f"its matrix {end} is {tuple(dense.shape)}, and not {(size, bins)}")
        if not bool(((dense != 0).sum(1) == 1).all()):
            raise Unlike(f"its matrix {end} is no sketch, in which every channel has one bin")
        places = dense.abs().argmax(1)
        options |= {
            f"rand_h_{end}": places.numpy(),
            f"rand_s_{end}": dense.gather(1, places[:, None])[:, 0].numpy(),
        }
    return options


ENTRIES = (
    Entry("MPNCOV", covariance, ("ISQRTCOVPool2d",)),
    Entry("BCNN", bilinear, ("BilinearPool2d",)),
    Entry("CBP", compact, ("CompactBilinearPool2d",)),
    Entry("CompactBilinearPooling", compact_of_two, ("CompactBilinearFusion2d", "MultimodalCompactBilinear0d")),
)
