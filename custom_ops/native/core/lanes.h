// A few numbers side by side, as one value: sums over long rows need them, because a compiler may not reorder a sum.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/element.h"

namespace poolexport {

//: Bytes of one vector: what processors with AVX2 have, and two of what others have.
constexpr int64_t VECTOR = 32;

template <class C>
struct Lanes {
  typedef C type __attribute__((vector_size(VECTOR)));
  static constexpr int64_t count = VECTOR / int64_t(sizeof(C));
};
template <class C>
using lanes = typename Lanes<C>::type;

template <class C>
POOL_INLINE void load(lanes<C>& to, const C* from) {
  std::memcpy(&to, from, sizeof to);
}
template <class C>
POOL_INLINE void store(C* to, const lanes<C>& from) {
  std::memcpy(to, &from, sizeof from);
}

template <class C>
POOL_INLINE C total(const lanes<C>& v) {
  C sum = v[0];
  for (int64_t i = 1; i < Lanes<C>::count; ++i) sum += v[i];
  return sum;
}

// Sum of the products of two rows.
template <class C>
POOL_INLINE C dot(const C* __restrict a, const C* __restrict b, int64_t count) {
  constexpr int64_t width = Lanes<C>::count;
  lanes<C> sums[4] = {}, x, y;
  int64_t i = 0;
  for (; i + 4 * width <= count; i += 4 * width)
#pragma GCC unroll 4
    for (int64_t k = 0; k < 4; ++k) {
      load(x, a + i + k * width);
      load(y, b + i + k * width);
      sums[k] += x * y;
    }
  for (; i + width <= count; i += width) {
    load(x, a + i);
    load(y, b + i);
    sums[0] += x * y;
  }
  C rest = 0;
  for (; i < count; ++i) rest += a[i] * b[i];
  return total<C>((sums[0] + sums[1]) + (sums[2] + sums[3])) + rest;
}

// Sum of a few cells of any type, in float64.
template <class T>
POOL_INLINE double sum_in_double(const T* cells, int64_t count) {
  double sums[4] = {0, 0, 0, 0};
  int64_t i = 0;
  for (; i + 4 <= count; i += 4)
    for (int lane = 0; lane < 4; ++lane) sums[lane] += double(widen(cells[i + lane]));
  double whole = (sums[0] + sums[2]) + (sums[1] + sums[3]);
  for (; i < count; ++i) whole += double(widen(cells[i]));
  return whole;
}

// Sum of a row.
template <class C>
POOL_INLINE C sum(const C* a, int64_t count) {
  constexpr int64_t width = Lanes<C>::count;
  lanes<C> sums[4] = {}, x;
  int64_t i = 0;
  for (; i + 4 * width <= count; i += 4 * width)
#pragma GCC unroll 4
    for (int64_t k = 0; k < 4; ++k) {
      load(x, a + i + k * width);
      sums[k] += x;
    }
  C rest = 0;
  for (; i < count; ++i) rest += a[i];
  return total<C>((sums[0] + sums[1]) + (sums[2] + sums[3])) + rest;
}

}  // namespace poolexport
