"""Attention pooling under one name: CLIP's layer and timm's, told apart by what they hold."""

from __future__ import annotations

import torch

from poolexport import nn as ours
from poolexport.adoption._entry import Entry, Foreign, Ours, Unlike, carry
from poolexport_ops import per_axis

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "c_proj")


def attention(found: Foreign) -> list[Ours]:
    return [_clip(found) if found.get("positional_embedding", None) is not None else _timm(found)]


def _clip(found: Foreign) -> Ours:
    table, heads = found.get("positional_embedding"), found.get("num_heads")
    entries, channels = table.shape
    side = round((entries - 1) ** 0.5)
    if side**2 != entries - 1:
        raise Unlike(f"its position table has {entries} entries, which are no square and one more")
    layer = ours.AttentionPool2d(channels, heads, side, found.get("c_proj.out_features"), positions="fixed")
    names = ["positional_embedding", *(f"{name}.{kind}" for name in PROJECTIONS for kind in ("weight", "bias"))]
    tensors = {name: found.get(name) for name in names}
    return Ours(carry(layer, tensors), _meaning(side, side), ((2, channels, side, side), (1, channels, side, side)))


def _timm(found: Foreign) -> Ours:
    if found.get("cls_token", None) is not None:
        raise Unlike("it has a class token, and the query of ours is the mean")
    if found.get("pool_type", "token") != "token":
        raise Unlike("it answers the whole map")
    if found.get("embed_dim") != found.get("in_features"):
        raise Unlike("it attends in another number of channels than the input has, and ours does not")
    if not isinstance(found.get("proj"), torch.nn.Linear):
        raise Unlike("it has no projection of the answer, and ours has")
    channels, heads, size = found.get("in_features"), found.get("num_heads"), per_axis("", found.get("feat_size"), 2, 1)
    layer = ours.AttentionPool2d(channels, heads, size, found.get("proj.out_features"), positions="fixed")
    tensors = {"positional_embedding": found.get("pos_embed")}
    tensors |= {f"c_proj.{kind}": found.get(f"proj.{kind}") for kind in ("weight", "bias")}
    joint = found.get("qkv", None)
    for place, letter in enumerate("qkv"):
        linear = joint if joint is not None else found.get(letter)
        rows = slice(place * channels, (place + 1) * channels)
        for kind in ("weight", "bias"):
            tensor = getattr(linear, kind)
            if tensor is None:
                tensor = torch.zeros(channels).to(linear.weight)
            elif joint is not None:
                tensor = tensor[rows]
            tensors[f"{letter}_proj.{kind}"] = tensor
    notes = ["timm's layer resizes its positions for maps of another size; ours refuses those"]
    if found.get("drop.p", 0.0):
        notes.append(f"its dropout of {found.get('drop.p'):g} in training is left out")
    shapes = ((2, channels, *size), (1, channels, *size))
    return Ours(carry(layer, tensors), _meaning(*size), shapes, tuple(notes))


def rotary(found: Foreign) -> list[Ours]:
    raise Unlike("it turns queries and keys by their positions, which no layer of ours does")


def latent(found: Foreign) -> list[Ours]:
    raise Unlike("it takes tokens, (N, L, C), and AttentionPoolLatent2d a map; its state loads into ours as it is")


def _meaning(height: int, width: int) -> str:
    return f"attention from the mean to all locations, for maps of {height}x{width}"


ENTRIES = (
    Entry("AttentionPool2d", attention, ("AttentionPool2d",)),
    Entry("RotAttentionPool2d", rotary, ()),
    Entry("AttentionPoolLatent", latent, ()),
)
