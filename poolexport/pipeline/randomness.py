"""What becomes of layers that draw: their expectation, one draw that is kept for ever, or new draws at every run.

    "expectation"   the layer is put into eval mode, in which it follows its fixed rule
    "fixed(7)"      everything the layer draws is drawn once, with seed 7, and is a constant of the graph
    "keep"          the graph draws; what depends on it is not compared, and the file says UNVERIFIED

A layer is named by its dotted path, which stands for all that is in it too, or by a pattern such as ``"*.drop"``.
"""

from __future__ import annotations

import difflib
import functools
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, resolve_name

from poolexport import catalog
from poolexport.errors import InputError, ModeError, RandomnessError
from poolexport.pipeline._run import run
from poolexport.pipeline._state import random_states_kept
from poolexport.pipeline.audit import (
    GENERATOR,
    MEMORY,
    SYSTEM,
    TORCH,
    TORCH_OWN,
    TRAINING,
    UNKNOWN,
    Audit,
    Culprit,
    examine,
    held_generators,
)

Policies = Mapping[str, str]

POLICY = re.compile(r"(expectation|keep|fixed(?:\((\d{1,18})\))?)")
ROOT = "(the model itself)"
#: Layers of torch that are random in training only.
DROPOUTS: tuple[type[nn.Module], ...] = (
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.FeatureAlphaDropout,
    nn.RReLU,
)


@dataclass(frozen=True)
class Rule:
    """A policy: "expectation", "fixed" with its seed, or "keep"."""

    action: str
    seed: int = 0

    def __str__(self) -> str:
        return f"fixed({self.seed})" if self.action == "fixed" else self.action

    @classmethod
    def of(cls, text: object) -> Rule:
        """Read a policy.

        Raises:
            InputError: it is none.
        """
        found = POLICY.fullmatch(text.strip()) if isinstance(text, str) else None
        if found is None:
            raise InputError(f'{text!r} is no policy; use "expectation", "fixed(7)" (any seed) or "keep"')
        if int(found[2] or 0) >= 2**32:
            raise InputError(f"the seed of {text!r} is too large; numpy takes seeds below 2**32")
        return cls(found[1].partition("(")[0], int(found[2] or 0))


@dataclass(frozen=True)
class Settled:
    """A model whose randomness is decided.

    Args:
        policies: what became of every layer that a policy decided about, by dotted path.
        called: dotted paths of the modules that a run calls.
    """

    policies: Mapping[str, str] = field(default_factory=dict)
    called: frozenset[str] = frozenset()


def kept(policies: Policies) -> frozenset[str]:
    """Dotted paths of the layers that draw in the file."""
    return frozenset(_bare(path) for path, policy in policies.items() if policy == "keep")


def settle(model: nn.Module, args: Sequence[Tensor], policies: Policies | None = None) -> Settled:
    """Change a copy of a model so that its policies hold.

    Raises:
        ModeError: a module is in training mode, and no policy says what that means; everything else is named with it.
        RandomnessError: something is random, and no policy says what becomes of it; all of it is named.
        InputError: a policy is none, names nothing, or cannot be kept to.
    """
    if model.training:
        raise ModeError("the model is in training mode; call model.eval() before exporting it")
    plan = _Plan(model, policies or {})
    plan.switch_on()
    found = examine(model, args)
    if not plan.rules:
        if found.clean:
            return Settled(called=found.called)
        raise refusal(found)
    done = plan.apply(found, args)
    left = examine(model, args) if done else found
    remaining = tuple(culprit for culprit in left.culprits if not _is_settled(culprit, done))
    if remaining:
        raise refusal(replace(left, culprits=remaining))
    plan.require_used(done)
    named = {path: rule for path, rule in plan.expected(found.called).items() if path not in done}
    texts = {path or ROOT: str(rule) for path, rule in {**named, **done}.items()}
    return Settled(dict(sorted(texts.items())), left.called)


def refusal(found: Audit) -> RandomnessError:
    """The error that names every culprit."""
    kind = ModeError if any(culprit.kind == TRAINING for culprit in found.culprits) else RandomnessError
    if len(found.culprits) == 1:
        return kind(f"the answer would differ from run to run: {found.culprits[0]}", found)
    listed = "; ".join(f"({n}) {culprit}" for n, culprit in enumerate(found.culprits, 1))
    return kind(f"the answer would differ from run to run, for {len(found.culprits)} reasons: {listed}", found)


def _is_settled(culprit: Culprit, done: Mapping[str, Rule]) -> bool:
    """Whether a policy accounts for what is still seen.

    Raises:
        InputError: what is still seen is what the policy was to end.
    """
    rule = done.get(culprit.path)
    if rule is None or culprit.kind in (MEMORY, UNKNOWN):
        return False
    for draw in culprit.draws or (culprit,):
        if rule.action == "expectation":
            raise _no_expectation(draw)
        if rule.action == "fixed" and draw.kind in (TORCH, TORCH_OWN):
            raise InputError(
                f"{_who(culprit)} cannot have fixed draws: it {_what(draw)}, inside a function that cannot be taken "
                "apart; draw with torch.rand or its like, or keep the draws"
            )
    return True


def _no_expectation(draw: Culprit) -> InputError:
    return InputError(
        f"{_who(draw)} has no expectation: it {_what(draw)} in eval mode, too, so it has no rule without draws; "
        'say "fixed(7)" (any seed) or "keep" for it, or write its rule'
    )


def _what(draw: Culprit) -> str:
    return f"{draw.drawn}{f' at {draw.source}' if draw.source else ''}"


def _who(culprit: Culprit) -> str:
    return f"{culprit.path or ROOT} ({culprit.layer})"


def _bare(path: str) -> str:
    return "" if path == ROOT else path


class _Plan:
    """Which policy is for which module."""

    def __init__(self, model: nn.Module, policies: Policies) -> None:
        if not isinstance(policies, Mapping):
            raise InputError(f"randomness must map dotted paths to policies, got {type(policies).__name__}")
        self.modules = dict(model.named_modules())
        self.rules = {_bare(str(pattern)): Rule.of(text) for pattern, text in policies.items()}
        for pattern in self.rules:
            if not any(_matches(path, pattern) for path in self.modules):
                close = difflib.get_close_matches(pattern, [path for path in self.modules if path], 3, 0.5)
                hint = f"; did you mean {' or '.join(close)}?" if close else ""
                raise InputError(f"randomness names {pattern!r}, but no module is called that{hint}")

    def rule(self, path: str) -> Rule | None:
        """The policy of a module: that of its own path, else of the nearest module it is in, else of a pattern."""
        at = path
        while at:
            if at in self.rules:
                return self.rules[at]
            at = at.rpartition(".")[0]
        if path == "" and "" in self.rules:
            return self.rules[""]
        return next((rule for pattern, rule in self.rules.items() if pattern and fnmatchcase(path, pattern)), None)

    def switch_on(self) -> None:
        """Let layers draw that are random in training only, where a policy is for their very path."""
        for path, rule in self.rules.items():
            if rule.action != "expectation" and path in self.modules and _is_stochastic(self.modules[path]):
                self.modules[path].training = True

    def expected(self, called: frozenset[str]) -> dict[str, Rule]:
        """The stochastic layers that follow their fixed rule because a policy says so."""
        rules = {path: self.rule(path) for path in called if _is_stochastic(self.modules[path])}
        return {path: rule for path, rule in rules.items() if rule is not None and rule.action == "expectation"}

    def apply(self, found: Audit, args: Sequence[Tensor]) -> dict[str, Rule]:
        """Make every policy true of the model; returns what was done to which module."""
        done: dict[str, Rule] = {}
        for culprit in found.culprits:
            rule = self.rule(culprit.path)
            if rule is None or culprit.kind in (MEMORY, UNKNOWN):
                continue
            module = self.modules[culprit.path]
            if culprit.kind == TRAINING and not culprit.draws:
                if not isinstance(module, nn.modules.batchnorm._NormBase):
                    module.training = False
                    done[culprit.path] = Rule("expectation")
                continue
            for draw in culprit.draws or (culprit,):
                _require_possible(rule, draw, module, is_training=culprit.kind == TRAINING)
            if rule.action == "expectation":
                module.training = False
            elif rule.action == "fixed" and HELD not in vars(module):
                _wrap(module, Draws(culprit.path or ROOT, rule.seed))
            done[culprit.path] = rule
        fixed = [path for path, rule in done.items() if rule.action == "fixed"]
        for path in fixed:
            inside = [p for p, rule in done.items() if rule.action == "keep" and (not path or p.startswith(f"{path}."))]
            if inside:
                raise InputError(f"{inside[0]} cannot keep its draws inside {path or ROOT}, whose draws are fixed")
        if fixed:
            _record([self.modules[path] for path in fixed], self.modules[""], args)
        return done

    def require_used(self, done: Mapping[str, Rule]) -> None:
        """Raise an InputError for a policy about draws that nothing draws."""
        for pattern, rule in self.rules.items():
            used = (path for path, what in done.items() if what.action == rule.action)
            if rule.action != "expectation" and not any(_matches(path, pattern) for path in used):
                raise InputError(
                    f"randomness says {rule} for {pattern or ROOT!r}, but it draws nothing; put what should draw into "
                    "training mode first, or leave the policy out"
                )


def _require_possible(rule: Rule, draw: Culprit, module: nn.Module, *, is_training: bool) -> None:
    """Raise an InputError where a policy cannot be kept to."""
    if rule.action == "expectation" and not is_training:
        raise _no_expectation(draw)
    if rule.action == "keep" and draw.kind != TORCH:
        raise InputError(
            f"{_who(draw)} cannot keep its draws: it {_what(draw)}, for which graphs have no operator; "
            'say "fixed(7)" (any seed) for it'
        )
    if rule.action != "fixed":
        return
    reason = ""
    if draw.kind == SYSTEM:
        reason = f"it {_what(draw)}, which takes no seed"
    elif draw.kind == GENERATOR:
        names = {f"{draw.path}.{name}" if draw.path else name for name, _ in held_generators(module)}
        if draw.drawn.removeprefix("draws from ") not in names:
            reason = f"it {_what(draw)}, a generator that the module does not hold as an attribute"
    elif "forward" in vars(module):
        reason = "its forward was replaced on the instance"
    if reason:
        raise InputError(f"{_who(draw)} cannot have fixed draws: {reason}")


def _matches(path: str, pattern: str) -> bool:
    if not pattern:
        return not path
    return path == pattern or path.startswith(f"{pattern}.") or fnmatchcase(path, pattern)


def _is_stochastic(module: nn.Module) -> bool:
    """Whether a layer is known to be random in training and to follow a fixed rule in eval mode."""
    method = catalog.method_of(module)
    return isinstance(module, DROPOUTS) or (method is not None and method.random)


# Draws that are made once. -------------------------------------------------------------------------------------------

HELD = "_poolexport_draws"
#: Functions whose answer is nothing but drawn numbers.
NEW = {f"torch.{name}" for name in ("rand", "randn", "randint", "randperm", "rand_like", "randn_like", "randint_like")}
#: Functions whose answer is drawn from what they are given.
GIVEN = {f"torch.{name}" for name in ("normal", "bernoulli", "multinomial", "poisson", "binomial")} | {
    "torch.Tensor.bernoulli",
    "torch.Tensor.multinomial",
}
IN_PLACE = {
    f"torch.Tensor.{name}_"
    for name in ("bernoulli", "random", "normal", "uniform", "exponential", "geometric", "cauchy", "log_normal")
}
#: Functions that scale and shift each value by drawn numbers, by whether they do so unless told to.
AFFINE = {
    "torch.dropout": True,
    "torch.nn.functional.dropout": True,
    "torch.nn.functional.dropout1d": True,
    "torch.nn.functional.dropout2d": True,
    "torch.nn.functional.dropout3d": True,
    "torch.nn.functional.alpha_dropout": False,
    "torch.nn.functional.feature_alpha_dropout": False,
}


@dataclass
class Draw:
    """One draw: the function, its numbers, and what the function was given."""

    name: str
    values: tuple[Tensor, ...]
    given: tuple[Tensor, ...]


@dataclass
class Draws:
    """Everything that one call of a module draws, in order; every other call draws the same again."""

    path: str
    seed: int
    taken: list[Draw] | None = None
    compared: bool = False

    @contextmanager
    def again(self, module: nn.Module) -> Iterator[None]:
        """Draw; and all generators but torch's start from the seed, and are as they were afterwards."""
        python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002
        generators = [value for _, value in held_generators(module)]
        states = [_state(value) for value in generators]
        try:
            random.seed(self.seed)
            np.random.seed(self.seed % 2**32)  # noqa: NPY002
            for value in generators:
                _seed(value, self.seed)
            if self.taken is None:
                mode = _Freeze(self, recording=True)
                with random_states_kept(self.seed), mode:
                    yield
                self.taken = mode.taken
            else:
                mode = _Freeze(self, recording=False)
                with mode:
                    yield
                if mode.position != len(self.taken):
                    raise self.differs()
        finally:
            random.setstate(python)
            np.random.set_state(legacy)  # noqa: NPY002
            for value, state in zip(generators, states):
                _restore(value, state)

    def differs(self) -> InputError:
        """The error where a call draws otherwise than the one whose draws are fixed."""
        return InputError(
            f"{self.path} cannot have fixed draws: what it draws depends on its input, or on which call it is"
        )


class _Freeze(TorchFunctionMode):
    """Takes down what is drawn, or gives it again."""

    def __init__(self, draws: Draws, recording: bool) -> None:
        super().__init__()
        self.draws = draws
        self.recording = recording
        self.taken: list[Draw] = []
        self.position = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = resolve_name(func) or ""
        if not _is_draw(name, args, kwargs):
            return func(*args, **kwargs)
        if kwargs.get("out") is not None:
            raise InputError(f"{self.draws.path} cannot have fixed draws: {name} writes into a tensor given as out=")
        kwargs.pop("generator", None)
        draw = self._take(func, name, args, kwargs) if self.recording else self._next(name, args, kwargs)
        if name in AFFINE:
            scale, *shift = (value.to(args[0].dtype) for value in draw.values)
            result = args[0] * scale + shift[0] if shift else args[0] * scale
            in_place = kwargs.get("inplace", args[3] if len(args) > 3 else False)
            return args[0].copy_(result) if in_place else result
        [value] = draw.values
        if name in IN_PLACE:
            return args[0].copy_(value)
        follows = name.endswith("_like") or (name in GIVEN and value.is_floating_point())
        like = args[0].dtype if follows and isinstance(args[0], Tensor) else value.dtype
        return value.to(kwargs.get("dtype") or like).clone()

    def _take(self, func: Callable[..., Any], name: str, args: Any, kwargs: Any) -> Draw:
        with torch._C.DisableTorchFunction():
            if name in AFFINE:
                p = kwargs.get("p", args[1] if len(args) > 1 else 0.5)
                state = torch.get_rng_state()
                shift = func(torch.zeros_like(args[0]), p, True)
                torch.set_rng_state(state)
                scale = func(torch.ones_like(args[0]), p, True) - shift
                values = (scale, shift) if shift.any() else (scale,)
            elif name in IN_PLACE:
                values = (func(args[0].clone(), *args[1:], **kwargs),)
            else:
                values = (func(*args, **kwargs).clone(),)
            given = tuple(t.clone() for t in _given(name, args, kwargs))
        draw = Draw(name, values, given)
        self.taken.append(draw)
        return draw

    def _next(self, name: str, args: Any, kwargs: Any) -> Draw:
        taken = self.draws.taken or []
        if self.position >= len(taken) or taken[self.position].name != name:
            raise self.draws.differs()
        draw = taken[self.position]
        self.position += 1
        wanted = _wanted(name, args, kwargs)
        if wanted is not None:
            if any(isinstance(length, torch.SymInt) for length in wanted):
                shown = "x".join(str(n) if isinstance(n, int) else "?" for n in wanted)
                raise InputError(
                    f"{self.draws.path} cannot have fixed draws: {name} draws {shown} numbers, where ? follows a "
                    "dynamic axis, and what is drawn once has one shape; leave that axis out of the dynamic axes"
                )
            if tuple(wanted) != tuple(draw.values[0].shape):
                raise self.draws.differs()
        if self.draws.compared:
            given = tuple(_given(name, args, kwargs))
            if len(given) != len(draw.given) or not all(torch.equal(a, b) for a, b in zip(given, draw.given)):
                raise InputError(
                    f"{self.draws.path} cannot have fixed draws: {name} draws by the values of its input, so that a "
                    "fixed draw would be that of the example"
                )
        return draw


def _is_draw(name: str, args: Any, kwargs: Mapping[str, Any]) -> bool:
    if name in AFFINE:
        told = args[2] if len(args) > 2 else None
        return bool(kwargs.get("training", kwargs.get("train", AFFINE[name] if told is None else told)))
    return name in NEW or name in GIVEN or name in IN_PLACE


def _given(name: str, args: Any, kwargs: Mapping[str, Any]) -> list[Tensor]:
    """The tensors whose values a draw follows; dropouts and draws of fixed odds follow none."""
    if name in AFFINE or name in NEW:
        return []
    rest = args[1:] if name in IN_PLACE else args
    return [value for value in (*rest, *kwargs.values()) if isinstance(value, Tensor)]


def _wanted(name: str, args: Any, kwargs: Mapping[str, Any]) -> tuple[Any, ...] | None:
    """The shape of a draw; None where the arguments do not say it."""
    if name in ("torch.rand", "torch.randn", "torch.randint", "torch.normal") and "size" in kwargs:
        return tuple(kwargs["size"])
    if name in ("torch.rand", "torch.randn"):
        return tuple(args[0]) if args and isinstance(args[0], (tuple, list)) else tuple(args)
    if name in ("torch.randint", "torch.normal"):
        sizes = [value for value in args if isinstance(value, (tuple, list))]
        return tuple(sizes[0]) if sizes else None
    if name == "torch.randperm":
        return (args[0],)
    if "multinomial" in name or not args or not isinstance(args[0], Tensor):
        return None
    return tuple(args[0].shape)


def _wrap(module: nn.Module, draws: Draws) -> None:
    """Give the module a class whose forward draws the same at every call."""
    kind = type(module)

    @functools.wraps(kind.forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        with vars(self)[HELD].again(self):
            return kind.forward(self, *args, **kwargs)

    vars(module)[HELD] = draws
    module.__class__ = type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})


def _record(fixed: Sequence[nn.Module], model: nn.Module, args: Sequence[Tensor]) -> None:
    """Let every fixed module draw once, then see that other values make it draw the same."""
    draws = [vars(module)[HELD] for module in fixed]
    with random_states_kept(0):
        run(model, args)
        for held in draws:
            held.compared = True
        run(model, [_other(x) for x in args])
        for held in draws:
            held.compared = False


def _other(x: Tensor) -> Tensor:
    """Values unlike those of the example, of the same range."""
    return x * -0.5 + 0.25 if x.is_floating_point() else x.flip(tuple(range(x.dim())))


def _state(generator: Any) -> Any:
    if isinstance(generator, random.Random):
        return generator.getstate()
    return generator.get_state() if isinstance(generator, np.random.RandomState) else generator.bit_generator.state


def _restore(generator: Any, state: Any) -> None:
    if isinstance(generator, random.Random):
        generator.setstate(state)
    elif isinstance(generator, np.random.RandomState):
        generator.set_state(state)
    else:
        generator.bit_generator.state = state


def _seed(generator: Any, seed: int) -> None:
    if isinstance(generator, random.Random):
        generator.seed(seed)
    elif isinstance(generator, np.random.RandomState):
        generator.seed(seed % 2**32)
    else:
        generator.bit_generator.state = type(generator.bit_generator)(seed).state


__all__ = ["Policies", "Settled", "kept", "refusal", "settle"]
