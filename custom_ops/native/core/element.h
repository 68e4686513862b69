// Element types, and how those of 16 bits become float and back.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/targets.h"

namespace poolexport {

// Numbers are those of ONNX.
enum class Type : int { SAME = -1, ANY = 0, FLOAT = 1, INT32 = 6, INT64 = 7, BOOL = 9, FLOAT16 = 10, DOUBLE = 11, BFLOAT16 = 16 };

struct Half {
  uint16_t bits;
};
struct Bfloat {
  uint16_t bits;
};

// The type in which values of another are computed.
template <class T>
struct Computed {
  using type = float;
};
template <>
struct Computed<double> {
  using type = double;
};
template <class T>
using computed = typename Computed<T>::type;

template <class To, class From>
POOL_INLINE To bits_as(From value) {
  static_assert(sizeof(To) == sizeof(From));
  To result;
  std::memcpy(&result, &value, sizeof result);
  return result;
}

POOL_INLINE float widen(float x) { return x; }
POOL_INLINE double widen(double x) { return x; }
POOL_INLINE float widen(Bfloat x) { return bits_as<float>(uint32_t{x.bits} << 16); }
POOL_INLINE float widen(Half x) {
  const uint32_t sign = uint32_t(x.bits & 0x8000u) << 16, rest = x.bits & 0x7fffu;
  // Exponents of normal numbers move from a bias of 15 to one of 127; what has none is a multiple of 2^-24.
  const uint32_t normal = (rest << 13) + ((rest >= 0x7c00u ? 224u : 112u) << 23);
  const float small = float(int32_t(rest)) * 0x1p-24f;
  return bits_as<float>((rest < 0x400u ? bits_as<uint32_t>(small) : normal) | sign);
}

template <class T>
T narrow(computed<T> x);
template <>
POOL_INLINE float narrow<float>(float x) {
  return x;
}
template <>
POOL_INLINE double narrow<double>(double x) {
  return x;
}
template <>
POOL_INLINE Bfloat narrow<Bfloat>(float x) {
  const uint32_t bits = bits_as<uint32_t>(x);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return {uint16_t(x != x ? (bits >> 16) | 0x40u : rounded)};
}
template <>
POOL_INLINE Half narrow<Half>(float x) {
  const uint32_t bits = bits_as<uint32_t>(x), sign = (bits >> 16) & 0x8000u, rest = bits & 0x7fffffffu;
  // To nearest, ties to even, by the adder of the processor below 2^-14 and by integers above.
  const uint32_t small = bits_as<uint32_t>(bits_as<float>(rest) + 0.5f) - 0x3f000000u;
  const uint32_t normal = (rest - (112u << 23) + 0xfffu + ((rest >> 13) & 1u)) >> 13;
  uint32_t result = rest < (113u << 23) ? small : normal;
  result = rest >= 0x477ff000u ? 0x7c00u : result;
  result = rest > 0x7f800000u ? 0x7e00u : result;
  return {uint16_t(result | sign)};
}

}  // namespace poolexport
