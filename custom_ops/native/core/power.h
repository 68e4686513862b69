// Powers, and what they are made of, for the arguments that pooling has: positive numbers, and exponents up to about 1.
// Errors are below two units in the last place; NaN stays NaN.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/element.h"
#include "core/math.h"

namespace poolexport {

namespace detail {

// The sum of c[k] x^k.
template <class C, size_t N>
POOL_INLINE C polynomial(C x, const C (&c)[N]) {
  C sum = c[N - 1];
#pragma GCC unroll 16
  for (int k = int(N) - 2; k >= 0; --k) sum = sum * x + c[k];
  return sum;
}

// The logarithm of a number that is neither 0 nor negative nor subnormal: ln x = f + bend + exponent ln 2, and
// x = (1 + f) 2^exponent with 1 + f between sqrt(1/2) and sqrt(2).
struct Split {
  float f, bend, exponent;
};
POOL_INLINE Split split(uint32_t bits) {
  const int32_t k = int32_t(bits - 0x3f3504f3u) >> 23;
  const float f = bits_as<float>(bits - (uint32_t(k) << 23)) - 1;
  constexpr float terms[] = {0.3333333118f,  -0.2499999696f, 0.2000071575f,  -0.1666780232f, 0.1424905765f,
                             -0.1242568733f, 0.1168541992f,  -0.1147973385f, 0.06971611471f};
  return {f, f * f * (f * polynomial(f, terms) - 0.5f), float(k)};
}

// e^r - 1 for |r| <= ln(2)/2.
POOL_INLINE float expm1_series(float r) {
  constexpr float terms[] = {0.5000000013f,   0.1666666668f,   0.04166646501f,
                             0.008333310934f, 0.001393364103f, 0.0001989098087f};
  return r + r * r * polynomial(r, terms);
}

}  // namespace detail

// The natural logarithm of a number that is neither 0 nor negative nor subnormal.
POOL_INLINE float log_of_normal(float x) {
  const detail::Split s = detail::split(bits_as<uint32_t>(x));
  const float result = s.exponent * 0.693145752f + (s.f + (s.bend + s.exponent * 1.42860677e-6f));
  return x < __builtin_inff() ? result : x;
}
POOL_INLINE double log_of_normal(double x) {
  const uint64_t bits = bits_as<uint64_t>(x);
  // log m = 2 atanh(s) with s = (m - 1) / (m + 1).
  const int64_t k = int64_t(bits - 0x3fe6a09e667f3bcdULL) >> 52;
  const double m = bits_as<double>(bits - (uint64_t(k) << 52)), s = (m - 1) / (m + 1), q = s * s;
  constexpr double terms[] = {0.66666666666666696862, 0.3999999999989950449,  0.28571428625975484921,
                              0.22222211134795079855, 0.1818288912526172208, 0.15331721600556041269,
                              0.1461644968504340586};
  const double exponent = double(int32_t(k));
  const double result = exponent * 6.93147180369123816490e-01 +
                        (2 * s + (s * q * detail::polynomial(q, terms) + exponent * 1.90821492927058770002e-10));
  return x < __builtin_inf() ? result : x;
}

// e^t and e^t - 1, both with all their digits, for t up to about 80. Where e^t would be subnormal it is the smallest
// normal number; it is 0 where it should be.
template <class C>
struct Exponential {
  C value, less_one;
};

POOL_INLINE Exponential<float> exponential(float t) {
  const float bounded = t < -87.0f ? -87.0f : t;
  const float magic = 0x1.8p23f, shifted = bounded * 1.44269504f + magic, n = shifted - magic;
  const float q = detail::expm1_series((bounded - n * 0.693145752f) - n * 1.42860677e-6f);
  const float power = bits_as<float>((bits_as<uint32_t>(shifted) << 23) + (127u << 23));
  return {t < -104.0f ? 0.0f : power + power * q, power * q + (power - 1)};
}
POOL_INLINE Exponential<double> exponential(double t) {
  const double bounded = t < -708.0 ? -708.0 : t;
  const double magic = 0x1.8p52, shifted = bounded * 1.4426950408889634 + magic, n = shifted - magic;
  const double r = (bounded - n * 6.93147180369123816490e-01) - n * 1.90821492927058770002e-10;
  constexpr double terms[] = {0.50000000000000010211,    0.16666666666666667452,    0.041666666666624161903,
                              0.0083333333333300644495,  0.0013888888917196719077,  0.00019841269863040545271,
                              0.000024801521322368693266, 2.7557268480310025526e-6, 2.7620075879983366586e-7,
                              2.5100375832561233664e-8};
  const double q = r + r * r * detail::polynomial(r, terms);
  const double power = bits_as<double>((bits_as<uint64_t>(shifted) << 52) + (uint64_t{1023} << 52));
  return {t < -745.5 ? 0.0 : power + power * q, power * q + (power - 1)};
}

// An exponent that many numbers are raised to, with the answers of std::pow where it is 0 or not finite, and where a
// number is negative. The relative error is about 2^-53 times the logarithm of the power.
struct Power {
  double exponent;
  double below;  // what the power of a negative number is multiplied with
  int small;     // the exponent where it is 1, 2, 3 or 4; otherwise 0

  explicit Power(double p) : exponent(p), below(1), small(p == 1 ? 1 : p == 2 ? 2 : p == 3 ? 3 : p == 4 ? 4 : 0) {
    if (std::fmod(p, 2) != 0) below = std::trunc(p) == p ? -1 : __builtin_nan("");
  }

  // Raises each of them.
  POOL_INLINE void raise(double* __restrict x, int64_t number) const {
    if (small == 1) return;
    if (small == 2) {
      for (int64_t i = 0; i < number; ++i) x[i] *= x[i];
    } else if (small == 3) {
      for (int64_t i = 0; i < number; ++i) x[i] *= x[i] * x[i];
    } else if (small == 4) {
      for (int64_t i = 0; i < number; ++i) x[i] = (x[i] * x[i]) * (x[i] * x[i]);
    } else if (exponent == 0 || exponent - exponent != 0) {
      for (int64_t i = 0; i < number; ++i) x[i] = std::pow(x[i], exponent);
    } else {
      const double p = exponent, sign = below;
      for (int64_t i = 0; i < number; ++i) {
        const double power = exp(p * log(x[i] < 0 ? -x[i] : x[i]));
        x[i] = x[i] < 0 ? sign * power : power;
      }
    }
  }
};

}  // namespace poolexport
