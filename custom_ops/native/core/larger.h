// The larger of two numbers, where NaN is larger than all.
#pragma once

#include "core/targets.h"

namespace poolexport {

template <class C>
POOL_INLINE C larger(C a, C b) {
  return b > a || b != b ? b : a;
}

}  // namespace poolexport
