"""Attention pooling: CLIP's layer and timm's of one name, told apart by what they hold; SimPool; learned queries."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from poolexport import nn as ours
from poolexport.adoption._entry import Entry, Foreign, Ours, Unlike, carry, planes
from poolexport_ops import per_axis

SIMPOOL = "attention from the mean to all normalised locations, which are averaged as they are"
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
    if not isinstance(found.get("proj"), nn.Linear):
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


class TokensAsMap(nn.Module):
    """(N, L, C) tokens as a map (N, C, L, 1), for a layer to which the places of its locations are all the same.

    Example:
        >>> import torch
        >>> TokensAsMap()(torch.rand(2, 49, 8)).shape
        torch.Size([2, 8, 49, 1])
    """

    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2).unsqueeze(3)


def latent(found: Foreign) -> list[Ours]:
    """timm's AttentionPoolLatent, which takes tokens."""
    channels, heads = found.get("kv.in_features"), found.get("num_heads")
    if found.get("latent_len") != 1:
        raise Unlike(f"it has {found.get('latent_len')} learned queries, and ours has one")
    if found.get("pos_embed", None) is not None:
        raise Unlike("it adds positions to its tokens, which ours does not")
    if found.get("pool") not in ("token", "avg"):
        raise Unlike("it answers all of its queries")
    if found.get("latent").shape[2] != channels:
        raise Unlike("it attends in another number of channels than the input has, and ours does not")
    _require_plain(found, "q_norm", "k_norm", "mlp.norm")
    curve = found.get("mlp.act")
    tanh = getattr(curve, "approximate", "none") == "tanh" or type(curve).__name__ == "GELUTanh"
    if not tanh and not isinstance(curve, nn.GELU) and type(curve).__name__ != "GELU":
        raise Unlike(f"its network bends by {type(curve).__name__}, and ours by GELU")
    hidden = found.get("mlp.fc1.out_features")
    activation = "gelu_tanh" if tanh else "gelu"
    # The layer rounds the number of hidden units down, which must not lose one.
    exact = int(channels * (hidden / channels)) == hidden
    layer = ours.AttentionPoolLatent2d(channels, heads, (hidden if exact else hidden + 0.5) / channels, activation)
    _require_layer_norm(found, "norm")
    tensors = {"latent": found.get("latent")} | _of_linear(found, {"norm": "norm"})
    tensors |= _of_linear(found, {name: name for name in ("q", "kv", "proj", "mlp.fc1", "mlp.fc2")})
    carry(layer, tensors)
    layer.norm.eps = found.get("norm.eps")
    notes = ["the package's layer also takes a mask; ours does not"]
    dropped = sum(found.get(f"{name}.p", 0.0) for name in ("proj_drop", "mlp.drop1", "mlp.drop2"))
    if dropped:
        notes.append("its dropout in training is left out")
    meaning = "attention from a learned vector to all tokens, then a network with a shortcut"
    shapes = ((2, 9, channels), (1, 14, channels))
    return [Ours(nn.Sequential(TokensAsMap(), layer), meaning, shapes, tuple(notes))]


def simpool(found: Foreign) -> list[Ours]:
    """timm's SimPool2d."""
    if found.get("gamma") is not None:
        raise Unlike("its powers are counted from the smallest value of every channel, and ours from that of the image")
    _require_plain(found, "q_norm", "k_norm")
    layer = _simpool(found, {"norm": "norm_patches", "q": "wq", "k": "wk"})
    if not found.get("flatten", False):
        layer = nn.Sequential(layer, nn.Unflatten(1, (1, found.get("q.in_features"))))
    return [Ours(layer, SIMPOOL, planes(2, found.get("q.in_features")))]


def simpool_of_the_authors(found: Foreign) -> list[Ours]:
    if found.get("gamma") is not None:
        raise Unlike("its powers are counted from the smallest value of the batch, and ours from that of the image")
    layer = _simpool(found, {name: name for name in ("norm_patches", "wq", "wk")})
    channels = found.get("wq.in_features")
    notes = (
        "the package's layer leaves out the axis of a batch of one; ours keeps it",
        "the package's layer also takes tokens; ours takes maps",
    )
    return [Ours(layer, SIMPOOL, tuple((2, *shape[1:]) for shape in planes(2, channels)), notes)]


def _simpool(found: Foreign, names: dict[str, str]) -> nn.Module:
    norm, query, key = names
    channels, heads = found.get(f"{query}.in_features"), found.get("num_heads")
    if abs(float(found.get("scale")) - (channels // heads) ** -0.5) > 1e-9:
        raise Unlike(f"its scale is {found.get('scale')}, and ours is the root of the channels of a head")
    biases = [found.get(f"{name}.bias") is not None for name in (query, key)]
    if biases[0] != biases[1]:
        raise Unlike("only one of its projections has a bias")
    _require_layer_norm(found, norm)
    layer = ours.SimPool2d(channels, heads, qkv_bias=biases[0])
    carry(layer, _of_linear(found, names))
    layer.norm_patches.eps = found.get(f"{norm}.eps")
    return layer


def _of_linear(found: Foreign, names: dict[str, str]) -> dict[str, Tensor]:
    """Weights and biases by the names in our layer; a bias that is not there is left out."""
    kinds = ("weight", "bias")
    tensors = {f"{mine}.{kind}": found.get(f"{name}.{kind}") for name, mine in names.items() for kind in kinds}
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


def _require_layer_norm(found: Foreign, name: str) -> None:
    norm = found.get(name)
    if not isinstance(norm, nn.LayerNorm) and "LayerNorm" not in type(norm).__name__:
        raise Unlike(f"its {name} is {type(norm).__name__}, and ours a layer norm")
    if getattr(norm, "weight", None) is None or getattr(norm, "bias", None) is None:
        raise Unlike(f"its {name} has no weight or no bias of its own")


def _require_plain(found: Foreign, *names: str) -> None:
    """Nothing is done at these places."""
    for name in names:
        part = found.get(name, None)
        if part is not None and not isinstance(part, nn.Identity):
            raise Unlike(f"its {name} is {type(part).__name__}, and ours has nothing there")


def _meaning(height: int, width: int) -> str:
    return f"attention from the mean to all locations, for maps of {height}x{width}"


ENTRIES = (
    Entry("AttentionPool2d", attention, ("AttentionPool2d",)),
    Entry("RotAttentionPool2d", rotary, ()),
    Entry("AttentionPoolLatent", latent, ("AttentionPoolLatent2d",)),
    Entry("SimPool2d", simpool, ("SimPool2d",)),
    Entry("SimPool", simpool_of_the_authors, ("SimPool2d",)),
)
