// Left singular vectors of matrices in float64. No error is larger than that of float64 at the scale of the largest
// singular value.
#pragma once

#include "core/operator.h"

namespace poolexport {

// Of a batch of matrices (c, m) whose largest entry is near 1, or which are 0: min(c, m) vectors of length 1 (0 where a
// value is nothing but rounding) as rows, and their values squared, in no order.
void left_vectors(const Call& call, int64_t batch, int64_t c, int64_t m, const double* x, double* vectors,
                  double* squares);

}  // namespace poolexport
