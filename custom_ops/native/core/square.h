// Batches of square and of symmetric matrices: what is asked of their shapes, and how a triangle becomes a vector.
#pragma once

#include "core/operator.h"

namespace poolexport {

// Refuses what is no (N, D, D).
inline void require_square(const Shape& s) {
  if (s.size() != 3 || (s[1] != s[2] && s[1] != UNKNOWN && s[2] != UNKNOWN))
    refuse("matrices of shape (N, D, D) are needed, and not %s", spelled(s).c_str());
}

// Refuses what is no (N, C, M).
inline void require_sequences(const Shape& x) {
  if (x.size() != 3) refuse("an input of shape (N, C, M) is needed, and not %s", spelled(x).c_str());
}

// Entries on and above the diagonal.
inline int64_t triangle(int64_t d) {
  if (d == UNKNOWN) return UNKNOWN;
  if (d > (int64_t{1} << 30)) refuse("a matrix of %lld rows does not fit into memory", static_cast<long long>(d));
  return d * (d + 1) / 2;
}

}  // namespace poolexport
