// Products of matrices, batch by batch, in tiles of the output: how many threads there are changes no bit.
#pragma once

#include <memory>

#include "core/operator.h"

namespace poolexport {

// Matrices whose entry (i, j) is data[i * row + j * column]; the next of the batch begins `batch` later.
template <class T>
struct View {
  const T* data;
  int64_t row, column, batch;

  View turned() const { return {data, column, row, batch}; }
};

// Matrices of contiguous rows that follow each other.
template <class T>
View<T> dense(const T* data, int64_t rows, int64_t columns) {
  return {data, columns, 1, rows * columns};
}

// A batch of products a b of (m, k) and (k, n), each entry divided; `out` is dense. Of a symmetric result the upper
// triangle is computed.
template <class T, class Out = T>
struct Product {
  int64_t batch, m, n, k;
  View<T> a, b;
  Out* out;
  bool symmetric = false;
  double divisor = 1;
};

// Multiplies, adds and divides in C; the result is rounded once.
template <class C, class T, class Out>
void multiply(const Call& call, const Product<T, Out>& product);

}  // namespace poolexport
