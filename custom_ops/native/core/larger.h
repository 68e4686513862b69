// The larger of two values, without a branch that values decide.
#pragma once

#include "core/targets.h"

namespace poolexport {

// NaN wins: what compares with nothing stays.
template <class C>
POOL_INLINE C larger(C best, C x) {
  const C top = x > best ? x : best;
  return x != x ? x : top;
}

}  // namespace poolexport
