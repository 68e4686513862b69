// Elementary functions as plain arithmetic, so that loops over them become vector code. Errors are below one unit in
// the last place and a bit; NaN stays NaN.
#pragma once

#include <cstdint>

#include "core/element.h"

namespace poolexport {

namespace detail {

// e^r for |r| <= ln(2)/2, and exactly 1 at 0: polynomials whose largest relative error is least, a twentieth of half a
// unit in the last place and less.
template <class C, size_t N>
POOL_INLINE C exp_series(C r, const C (&terms)[N]) {
  C sum = terms[N - 1];
#pragma GCC unroll 16
  for (int k = int(N) - 2; k >= 0; --k) sum = sum * r + terms[k];
  return sum;
}
POOL_INLINE float exp_series(float r) {
  constexpr float terms[] = {1, 1, 0.49999993444f, 0.1666652056f, 0.041668388701f, 0.0083687255405f, 0.0013814589698f};
  return exp_series(r, terms);
}
POOL_INLINE double exp_series(double r) {
  constexpr double terms[] = {1,
                              1,
                              0.500000000000001061715,
                              0.166666666666664127644,
                              0.0416666666665302617986,
                              0.00833333333349433915108,
                              0.00138888889435989658269,
                              0.00019841269506769239127,
                              0.0000248014931347209168004,
                              2.75575862728912779586e-6,
                              2.76302344904060498458e-7,
                              2.50000711796692948888e-8};
  return exp_series(r, terms);
}

// e^x = series * 2^n, for x that is bounded already, with n as bits of two's complement.
template <class C, class Bits>
struct Reduced {
  C series;
  Bits n;
};
POOL_INLINE Reduced<float, uint32_t> reduced(float x) {
  // Adding 1.5 * 2^23 leaves the nearest integer in the low bits.
  const float magic = 0x1.8p23f, shifted = x * 1.44269504f + magic, n = shifted - magic;
  const float r = (x - n * 0.693145752f) - n * 1.42860677e-6f;
  return {exp_series(r), bits_as<uint32_t>(shifted) - bits_as<uint32_t>(magic)};
}
POOL_INLINE Reduced<double, uint64_t> reduced(double x) {
  const double magic = 0x1.8p52, shifted = x * 1.4426950408889634 + magic, n = shifted - magic;
  const double r = (x - n * 6.93147180369123816490e-01) - n * 1.90821492927058770002e-10;
  return {exp_series(r), bits_as<uint64_t>(shifted) - bits_as<uint64_t>(magic)};
}

// 2^n for every n from twice the smallest exponent up to the largest but one, in two steps: subnormals are rounded once.
POOL_INLINE float scale(float x, int32_t n) {
  const int32_t half = n >> 1;
  return x * bits_as<float>(uint32_t(half + 127) << 23) * bits_as<float>(uint32_t(n - half + 127) << 23);
}
POOL_INLINE double scale(double x, int64_t n) {
  const int64_t half = n >> 1;
  return x * bits_as<double>(uint64_t(half + 1023) << 52) * bits_as<double>(uint64_t(n - half + 1023) << 52);
}

}  // namespace detail

// e^x; 0 and infinity where it leaves the range.
POOL_INLINE float exp(float x) {
  x = x > 89.0f ? 89.0f : x;
  const auto e = detail::reduced(x < -105.0f ? -105.0f : x);
  return detail::scale(e.series, int32_t(e.n));
}
POOL_INLINE double exp(double x) {
  x = x > 710.0 ? 710.0 : x;
  const auto e = detail::reduced(x < -746.0 ? -746.0 : x);
  return detail::scale(e.series, int64_t(e.n));
}

// e^x for x <= 0, NaN or not, where the result may be subnormal: a weight beside one of 1.
POOL_INLINE float exp_of_negative(float x) {
  const auto e = detail::reduced(x < -105.0f ? -105.0f : x);
  // 2^n is too small for one factor, 2^(n + 64) is not.
  return e.series * bits_as<float>((e.n + 127u + 64u) << 23) * 0x1p-64f;
}
POOL_INLINE double exp_of_negative(double x) {
  const auto e = detail::reduced(x < -746.0 ? -746.0 : x);
  return e.series * bits_as<double>((e.n + 1023u + 512u) << 52) * 0x1p-512;
}

// e^x for x whose power is a normal number; anything where it is not.
POOL_INLINE float exp_of_moderate(float x) {
  const auto e = detail::reduced(x);
  return bits_as<float>(bits_as<uint32_t>(e.series) + (e.n << 23));
}
POOL_INLINE double exp_of_moderate(double x) {
  const auto e = detail::reduced(x);
  return bits_as<double>(bits_as<uint64_t>(e.series) + (e.n << 52));
}

// The natural logarithm; -infinity at 0, NaN below.
POOL_INLINE double log(double x) {
  const bool tiny = x < 0x1p-1022;
  const uint64_t bits = bits_as<uint64_t>(tiny ? x * 0x1p54 : x);
  // x = m 2^k with m between sqrt(1/2) and sqrt(2), and log m = 2 atanh((m - 1) / (m + 1)).
  const int64_t k = int64_t(bits - 0x3fe6a09e667f3bcdULL) >> 52;
  const double m = bits_as<double>(bits - (uint64_t(k) << 52)), s = (m - 1) / (m + 1), q = s * s;
  double sum = 1.0 / 23;
#pragma GCC unroll 16
  for (int n = 21; n >= 3; n -= 2) sum = sum * q + 1.0 / n;
  const double exponent = double(int32_t(k) - (tiny ? 54 : 0));
  const double result = exponent * 6.93147180369123816490e-01 +
                        (2 * s + (2 * s * q * sum + exponent * 1.90821492927058770002e-10));
  const double infinity = __builtin_inf();
  return x > 0 ? (x == infinity ? x : result) : x == 0 ? -infinity : x < 0 ? __builtin_nan("") : x;
}
POOL_INLINE float log(float x) { return float(log(double(x))); }

}  // namespace poolexport
