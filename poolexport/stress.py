"""Values that break careless code: the regimes every method and every exported model is tried on."""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType

import numpy as np

Pattern = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]


def _normal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.standard_normal(shape)


def _sparse(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """What a ReLU leaves: half of it zeros."""
    return np.maximum(rng.standard_normal(shape), 0.0)


def _zeros(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return np.zeros(shape)


def _constant(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return np.full(shape, 0.7)


def _ties(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Small integers, so that most windows hold their maximum twice."""
    return rng.integers(-2, 3, shape).astype(float)


def _spike(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """One cell far above all others."""
    x = rng.standard_normal(shape)
    if x.size:
        x.flat[x.size // 2] = 1e4
    return x


def _negative(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return -np.abs(rng.standard_normal(shape)) - 0.1


def _large(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return 1e4 * rng.standard_normal(shape)


def _small(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return 1e-5 * rng.standard_normal(shape)


def _cliff(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Blocks of 3 by 3 cells whose levels differ by thousands: every level is far below some neighbour."""
    x = rng.standard_normal(shape)
    for axis in range(2, len(shape)):
        steps = np.arange(shape[axis]) // 3 % 2
        x = x - 5e3 * steps.reshape([-1 if a == axis else 1 for a in range(len(shape))])
    return x


def _huge(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return 1e20 * rng.standard_normal(shape)


def _tiny(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return 1e-30 * rng.standard_normal(shape)


def _nan(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    x = rng.standard_normal(shape)
    x[rng.random(shape) < 0.05] = np.nan
    return x


def _infinite(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    x = rng.standard_normal(shape)
    x[rng.random(shape) < 0.05] = -np.inf
    if len(shape) > 2 and shape[0]:
        x[0, -1] = -np.inf
    return x


def _positive_infinite(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    x = rng.standard_normal(shape)
    x[rng.random(shape) < 0.03] = np.inf
    return x


#: Finite values that a network meets: every exported model is verified on them.
REGIMES: MappingProxyType[str, Pattern] = MappingProxyType(
    {
        "normal": _normal,
        "sparse": _sparse,
        "zeros": _zeros,
        "constant": _constant,
        "ties": _ties,
        "spike": _spike,
        "negative": _negative,
        "large": _large,
        "small": _small,
        "cliff": _cliff,
    }
)

#: Values that a single layer must survive as well.
EXTREMES: MappingProxyType[str, Pattern] = MappingProxyType(
    {
        "huge": _huge,
        "tiny": _tiny,
        "nan": _nan,
        "-inf": _infinite,
        "+inf": _positive_infinite,
    }
)

#: Those of them that hold no numbers. Runtimes differ there: onnxruntime's MaxPool passes over NaN, torch's does not.
NOT_NUMBERS = frozenset({"nan", "-inf", "+inf"})


def draw(name: str, shape: tuple[int, ...], dtype: np.dtype | type = np.float32, seed: int = 0) -> np.ndarray:
    """Values of the named pattern; the same arguments give the same values.

    float16 cannot hold 1e20 or 1e-30; there "huge" and "tiny" mean 6e4 and 1e-5, as large and as small as it goes.
    """
    pattern = {**REGIMES, **EXTREMES}[name]
    values = pattern(np.random.default_rng([seed, *name.encode()]), shape)
    if np.dtype(dtype) == np.float16:
        values = {"huge": 3e-16, "tiny": 1e25}.get(name, 1.0) * values
        finite = np.isfinite(values)
        values[finite] = np.clip(values[finite], -6e4, 6e4)
    return values.astype(dtype)
