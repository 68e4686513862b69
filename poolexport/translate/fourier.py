"""Fourier transforms as float64 matrix products; onnxruntime's own DFT has five digits, or three, at most lengths.

    X_k = sum over j of x_j exp(-+ 2 pi i j k / n)

A length n = a m is transformed along a, turned, and transformed along m; a long length without such factors is a
convolution with a chirp (Bluestein), whose length is a power of two. A dynamic length is one product with a matrix that
the graph computes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import SymInt, Tensor

from poolexport.errors import ExportError

#: Up to this length one dense matrix is as good as two small ones.
DENSE = 256

Pair = tuple[Tensor, Tensor]


def rules() -> dict[Any, Any]:
    fft = torch.fft
    return {
        fft.fft: partial(_one, -1),
        fft.ifft: partial(_one, 1),
        fft.rfft: _real,
        fft.irfft: _to_real,
        fft.fft2: partial(_many, -1, (-2, -1)),
        fft.ifft2: partial(_many, 1, (-2, -1)),
        fft.fftn: partial(_many, -1, None),
        fft.ifftn: partial(_many, 1, None),
        fft.rfft2: partial(_real_many, (-2, -1)),
        fft.rfftn: partial(_real_many, None),
        fft.irfft2: partial(_to_real_many, (-2, -1)),
        fft.irfftn: partial(_to_real_many, None),
        fft.hfft: _refused,
        fft.ihfft: _refused,
        fft.hfft2: _refused,
        fft.ihfft2: _refused,
        fft.hfftn: _refused,
        fft.ihfftn: _refused,
    }


def _refused(*_: Any, **__: Any) -> Any:
    raise ExportError("transforms of Hermitian signals (torch.fft.hfft and its kin) have no form; use fft or irfft")


def _one(sign: int, x: Tensor, n: Any = None, dim: int = -1, norm: str | None = None) -> Tensor:
    re, im = _parts(x, dim)
    n = re.shape[-1] if n is None else n
    re, im = _scaled(_transformed((_resized(re, n), None if im is None else _resized(im, n)), n, sign), n, sign, norm)
    return _complex(re, im, x, dim)


def _real(x: Tensor, n: Any = None, dim: int = -1, norm: str | None = None) -> Tensor:
    if x.is_complex():
        raise ExportError("torch.fft.rfft expects real numbers")
    re, _ = _parts(x, dim)
    n = re.shape[-1] if n is None else n
    re, im = _scaled(_transformed((_resized(re, n), None), n, -1), n, -1, norm)
    half = n // 2 + 1
    return _complex(re[..., :half], im[..., :half], x, dim)


def _to_real(x: Tensor, n: Any = None, dim: int = -1, norm: str | None = None) -> Tensor:
    re, im = _parts(x, dim)
    n = 2 * (re.shape[-1] - 1) if n is None else n
    half = n // 2 + 1
    re = _resized(re, half)
    im = torch.zeros_like(re) if im is None else _resized(im, half)
    # The other half mirrors this one; the imaginary parts of frequency 0 and of the middle one play no part.
    inner = (n + 1) // 2
    re = torch.cat([re, re[..., 1:inner].flip(-1)], -1)
    middle = im[..., 1:inner]
    zero = torch.zeros_like(im[..., :1])
    filled = torch.cat([zero, middle], -1)
    filled = torch.cat([filled, zero[..., : half - inner], -middle.flip(-1)], -1)
    re, _ = _scaled(_transformed((re, filled), n, 1), n, 1, norm)
    return re.movedim(-1, dim).to(_real_type(x))


def _many(
    sign: int, axes: Sequence[int] | None, x: Tensor, s: Any = None, dim: Any = None, norm: str | None = None
) -> Tensor:
    for axis, n in _axes(axes, x, s, dim):
        x = _one(sign, x, n, axis, norm)
    return x


def _real_many(
    axes: Sequence[int] | None, x: Tensor, s: Any = None, dim: Any = None, norm: str | None = None
) -> Tensor:
    *others, (last, n) = _axes(axes, x, s, dim)
    x = _real(x, n, last, norm)
    for axis, length in others:
        x = _one(-1, x, length, axis, norm)
    return x


def _to_real_many(
    axes: Sequence[int] | None, x: Tensor, s: Any = None, dim: Any = None, norm: str | None = None
) -> Tensor:
    *others, (last, n) = _axes(axes, x, s, dim)
    for axis, length in others:
        x = _one(1, x, length, axis, norm)
    return _to_real(x, n, last, norm)


def _axes(axes: Sequence[int] | None, x: Tensor, s: Any, dim: Any) -> list[tuple[int, Any]]:
    chosen = dim if dim is not None else axes
    chosen = [chosen] if isinstance(chosen, int) else chosen
    if chosen is None:
        chosen = range(x.dim()) if s is None else range(x.dim() - len(s), x.dim())
    lengths = [None] * len(chosen) if s is None else [None if n == -1 else n for n in s]
    return list(zip(chosen, lengths))


def _real_type(x: Tensor) -> torch.dtype:
    kind = x.real.dtype if x.is_complex() else x.dtype
    return kind if kind.is_floating_point else torch.get_default_dtype()


def _parts(x: Tensor, dim: int) -> tuple[Tensor, Tensor | None]:
    """Real and imaginary part in float64, the axis last."""
    if not x.is_complex():
        return x.movedim(dim, -1).double(), None
    pairs = torch.view_as_real(x).double()
    return pairs[..., 0].movedim(dim, -1), pairs[..., 1].movedim(dim, -1)


def _complex(re: Tensor, im: Tensor, like: Tensor, dim: int) -> Tensor:
    pairs = torch.stack([re.movedim(-1, dim), im.movedim(-1, dim)], -1).to(_real_type(like))
    return torch.view_as_complex(pairs)


def _resized(x: Tensor, n: Any) -> Tensor:
    length = x.shape[-1]
    if str(n) == str(length):
        return x
    if isinstance(n, SymInt) or isinstance(length, SymInt):
        raise ExportError(f"a Fourier transform of another length ({n}) than its axis ({length}) must be of fixed size")
    return x[..., :n] if n < length else torch.nn.functional.pad(x, [0, n - length])


def _scaled(z: Pair, n: Any, sign: int, norm: str | None) -> Pair:
    power = {"backward": 0.0 if sign < 0 else 1.0, "ortho": 0.5, "forward": 1.0 if sign < 0 else 0.0}
    exponent = power[norm or "backward"]
    if not exponent:
        return z
    if isinstance(n, SymInt):
        scale = (_places(n).double() * 0 + 1).sum().reshape(1) ** exponent
        return z[0] / scale, z[1] / scale
    scale = torch.full((1,), float(n) ** -exponent, dtype=torch.float64)
    return z[0] * scale, z[1] * scale


def _transformed(z: tuple[Tensor, Tensor | None], n: Any, sign: int) -> Pair:
    """The transform along the last axis, without any scale."""
    if isinstance(n, SymInt):
        return _times(z, *_matrix_of_a_dynamic_length(n, sign))
    if n <= DENSE:
        wave = _wave(np.outer(np.arange(n), np.arange(n)), n, sign)
        return _times(z, *_constants(wave))
    a = _factor(n)
    return _in_two_steps(z, a, n // a, sign) if a > 1 and n // a <= 4 * DENSE else _by_a_chirp(z, n, sign)


def _factor(n: int) -> int:
    return next(a for a in range(math.isqrt(n), 0, -1) if n % a == 0)


def _times(z: tuple[Tensor, Tensor | None], cos: Tensor, sin: Tensor) -> Pair:
    re, im = z
    rows = re.reshape(-1, re.shape[-1])
    shape = (*re.shape[:-1], cos.shape[1])
    if im is None:
        return (rows @ cos).reshape(shape), (rows @ sin).reshape(shape)
    others = im.reshape(-1, im.shape[-1])
    return (rows @ cos - others @ sin).reshape(shape), (rows @ sin + others @ cos).reshape(shape)


def _in_two_steps(z: tuple[Tensor, Tensor | None], a: int, m: int, sign: int) -> Pair:
    """x_(j m + l) along j, turned by k l, and along l; frequency k + a q lies at (k, q)."""
    first = _wave(np.outer(np.arange(a), np.arange(a)), a, sign)
    cos, sin = _constants(first)
    re = z[0].reshape(*z[0].shape[:-1], a, m)
    im = None if z[1] is None else z[1].reshape(re.shape)
    up, across = (cos @ re, sin @ re) if im is None else (cos @ re - sin @ im, sin @ re + cos @ im)
    turn_re, turn_im = _constants(_wave(np.outer(np.arange(a), np.arange(m)), a * m, sign))
    turned = up * turn_re - across * turn_im, up * turn_im + across * turn_re
    re, im = _times(turned, *_constants(_wave(np.outer(np.arange(m), np.arange(m)), m, sign)))
    return re.transpose(-1, -2).flatten(-2), im.transpose(-1, -2).flatten(-2)


def _by_a_chirp(z: tuple[Tensor, Tensor | None], n: int, sign: int) -> Pair:
    """2 j k = j^2 + k^2 - (k - j)^2 makes the transform a convolution of a longer length that has factors."""
    length = 1 << (2 * n - 2).bit_length()
    places = np.arange(n)
    # The squares are reduced modulo 2 n as whole numbers, so that angles keep their digits.
    chirp = _wave(places * places, 2 * n, sign)
    kernel = np.zeros(length, complex)
    kernel[:n] = chirp.conj()
    kernel[length - n + 1 :] = chirp[1:][::-1].conj()
    spectrum = np.fft.fft(kernel) / length
    c, s = _constants(chirp)
    re, im = z
    turned = (re * c, re * s) if im is None else (re * c - im * s, re * s + im * c)
    padded = tuple(torch.nn.functional.pad(x, [0, length - n]) for x in turned)
    a, b = _transformed((padded[0], padded[1]), length, -1)
    k_re, k_im = _constants(spectrum)
    a, b = _transformed((a * k_re - b * k_im, a * k_im + b * k_re), length, 1)
    a, b = a[..., :n], b[..., :n]
    return a * c - b * s, a * s + b * c


def _places(n: Any) -> Tensor:
    places: Tensor = torch.arange(n)
    return places


def _matrix_of_a_dynamic_length(n: SymInt, sign: int) -> Pair:
    places = _places(n)
    count = (places * 0 + 1).sum().reshape(1)
    turns = torch.remainder(places[:, None] * places, count).double() / count.double()
    angle = turns * torch.full((1,), 2 * math.pi * sign, dtype=torch.float64)
    return angle.cos(), angle.sin()


def _wave(turns: np.ndarray, length: int, sign: int) -> np.ndarray:
    """exp(+-2 pi i turns / length), whole turns left out, so that angles are small."""
    wave: np.ndarray = np.exp(sign * 2j * math.pi * (turns % length) / length)
    return wave


def _constants(wave: np.ndarray) -> Pair:
    return torch.from_numpy(wave.real.copy()), torch.from_numpy(wave.imag.copy())
