// Eigenvalues and eigenvectors of symmetric matrices in float64: Householder's tridiagonal form and the implicit QL
// method. The error is that of float64 at the scale of the largest eigenvalue.
#pragma once

#include "core/operator.h"

namespace poolexport {

// Of a batch of matrices (d, d) of finite numbers, which are destroyed; only their lower triangles are read. Row i of
// `vectors` belongs to value i, and values are in no order.
void eigen(const Call& call, int64_t batch, int64_t d, double* matrices, double* values, double* vectors);

}  // namespace poolexport
