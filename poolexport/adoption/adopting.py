"""Known layers of other packages replaced by ours, each replacement compared with what it replaces."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from poolexport.adoption import _slots
from poolexport.adoption._entry import Entry, Foreign, Ours, Unlike
from poolexport.adoption._proof import compare, compare_models
from poolexport.adoption.table import entry_for
from poolexport.errors import InputError
from poolexport.pipeline._state import random_states_kept

KEEP = "keep"


@dataclass(frozen=True)
class Replacement:
    """A foreign layer and what stands in its place.

    Args:
        path: dotted path; empty for the model itself.
        found: class of the foreign layer, with its module.
        ours: our layer, as it prints.
        meaning: what it computes, in words.
        notes: what differs beyond the numbers, and further places of the same layer, a sentence each.
        proven: whether the two were compared and answered the same.
        proof: the comparison, or why there was none.
    """

    path: str
    found: str
    ours: str
    meaning: str
    notes: tuple[str, ...]
    proven: bool
    proof: str


@dataclass(frozen=True)
class Kept:
    """A layer that has a known name and was left as it is.

    Args:
        path: dotted path; empty for the model itself.
        found: its class, with its module.
        reason: why it was left.
    """

    path: str
    found: str
    reason: str


@dataclass(frozen=True)
class Adopted:
    """A copy of a model with our layers, and what was done to it.

    Args:
        model: the copy.
        replacements: a record for every layer that was replaced, in the order of the model.
        kept: a record for every layer with a known name that was not.
        proof: what the comparison of the two models found; empty where there was none.
    """

    model: nn.Module
    replacements: list[Replacement]
    kept: list[Kept]
    proof: str = ""


def adopt(
    model: nn.Module, choices: Mapping[str, str] | None = None, *, args: Tensor | Sequence[Tensor] = ()
) -> Adopted:
    """Replace pooling layers of torch and other packages by ours, with their weights, in a copy of the model.

    Layers are known by the names of their classes and by what they hold; no other package is imported. Every one is
    compared with ours in float64, on inputs of several kinds and sizes, where it can be run on its own; where it
    cannot, its record says so. Parameters are taken over as they are, so that shared ones stay shared, and so do
    training and eval mode and hooks. A layer with a known name that is no layer of ours, as far as can be seen, stays.

    Args:
        model: it is not changed, and no random state is.
        choices: by dotted path or class name, the meaning of a layer that has several, or "keep" to leave it alone.
        args: one example input, or a sequence of them; given these, the two models are compared as a whole as well,
            where every replacement is proven. A model that asks for the class of a layer only shows itself so.

    Returns:
        The copy, and a record of every layer that was replaced or kept.

    Raises:
        InputError: a layer may mean several things, with the choices that settle it; it answers something else than
            ours; it cannot be replaced without a trace, because of hooks inside of it, a weight in another form that
            another module shares, or something besides the tree of modules that holds it; a choice is for nothing; or
            every layer is proven and the model as a whole answers otherwise.

    Example:
        >>> import torch, poolexport
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.MaxPool2d(2)).eval()
        >>> adopted = poolexport.adopt(model)
        >>> [(r.path, r.found, r.ours, r.proven) for r in adopted.replacements]
        [('1', 'torch.nn.modules.pooling.MaxPool2d', 'MaxPool2d(kernel_size=2, stride=2)', True)]
    """
    if choices is not None and not isinstance(choices, Mapping):
        raise InputError(f"choices must be a mapping of paths or class names to words, got {type(choices).__name__}")
    copied, _ = _slots.duplicate(model)
    choices = dict(choices or {})
    dtype = next((p.dtype for p in copied.parameters() if p.is_floating_point()), torch.float32)
    places: dict[int, list[str]] = {}
    for path, module in _slots.paths(copied):
        places.setdefault(id(module), []).append(path)
    _require_known(choices, copied)
    replacements, kept, done = [], [], set()
    exact = True
    above: list[str] = []
    for path, module in list(_slots.paths(copied)):
        entry = entry_for(module)
        if entry is None or id(module) in done or any(path.startswith(f"{a}." if a else "") for a in above):
            continue
        done.add(id(module))
        choice, found = _choice(choices, places[id(module)], entry.name), _kind(module)
        if choice == KEEP:
            above += places[id(module)]
            kept.append(Kept(path, found, "as chosen"))
            continue
        where = f"{path or 'the model itself'} ({entry.name})"
        try:
            ours, proven, proof = _settle(entry, Foreign(module, path or entry.name, choice, dtype), where)
        except Unlike as reason:
            kept.append(Kept(path, found, str(reason)))
            continue
        new = ours.layer
        exact = exact and proven and not ours.unit_vectors
        _slots.require_only_in_the_tree(copied, path, module)
        _slots.require_no_inner_hooks(path, module)
        _slots.require_weights_of_its_own(copied, path, module, new)
        copied = _slots.put(copied, module, new)
        above += places[id(module)]
        notes = (*ours.notes, *(f"the same layer is at {other}" for other in places[id(module)] if other != path))
        replacements.append(Replacement(path, found, repr(new), ours.meaning, notes, proven, proof))
    examples = (args,) if isinstance(args, Tensor) else tuple(args)
    proof = ""
    if examples and replacements and exact:
        whole = compare_models(model, copied, examples)
        if whole.same is False:
            raise InputError(
                f"every replaced layer computes what ours does, but the model as a whole does not: {whole.words}; it "
                f"may ask for the class of a layer, or for what only that class has; leave some alone, as in "
                f"{{{replacements[0].path!r}: {KEEP!r}}}"
            )
        proof = whole.words
    return Adopted(copied, replacements, kept, proof)


def _settle(entry: Entry, found: Foreign, where: str) -> tuple[Ours, bool, str]:
    """The layer of ours that a foreign one is, whether that is proven, and by what."""
    try:
        with random_states_kept(0):
            candidates = list(entry.convert(found))
    except InputError as error:
        raise InputError(f"{where}: {error}; or leave it alone: {found.chosen(KEEP)}") from error
    except ValueError as error:
        raise Unlike(f"our layer refuses its options: {error}") from error
    except (TypeError, AttributeError, RuntimeError) as error:
        raise Unlike(f"it does not hold what a layer of that name holds: {error}") from error
    names = [ours.name for ours in candidates if ours.name]
    if found.choice is not None:
        candidates = [ours for ours in candidates if ours.name == found.choice]
        if not candidates:
            raise InputError(
                f"{where}: there is no choice {found.choice!r}; it may be {' or '.join(map(repr, [*names, KEEP]))}"
            )
    proofs = [compare(found.module, ours) for ours in candidates]
    for ours, proof in zip(candidates, proofs):
        if proof.same:
            return ours, True, proof.words
    first, proof = candidates[0], proofs[0]
    if proof.same is None and len(candidates) > 1:
        raise InputError(
            f"{where}: {proof.words}, so it does not show which of these it is: {', '.join(names)}; choose one, as in "
            f"{found.chosen(names[0])}"
        )
    if proof.same is None:
        return first, False, f"not compared: {proof.words}"
    if first.if_different:
        return first, False, f"not compared: {first.if_different}"
    raise InputError(
        f"{where}: it does not compute what our layer of that name does: {proof.words}; it is another layer, so leave "
        f"it alone: {found.chosen(KEEP)}"
    )


def _choice(choices: Mapping[str, str], places: list[str], name: str) -> str | None:
    """What was chosen for a layer; its path says more than its class."""
    return next((choices[key] for key in (*places, name) if key in choices), None)


def _require_known(choices: Mapping[str, str], model: nn.Module) -> None:
    """Every choice is for a layer that is there, and may be replaced."""
    keys: dict[str, None] = {}
    for path, module in _slots.paths(model):
        if entry_for(module) is not None:
            keys |= {path: None, type(module).__name__: None}
    for key in choices:
        if key not in keys:
            near = difflib.get_close_matches(str(key), list(keys), 3, 0.6)
            hint = f"did you mean {' or '.join(near)}?" if near else f"there is {', '.join(keys) or 'none'}"
            raise InputError(f"choices name {key!r}, but no layer that may be replaced has that path or class; {hint}")


def _kind(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"
