// What operators on left singular vectors share: samples made safe for a decomposition, packed symmetric matrices.
#pragma once

#include <cmath>
#include <memory>

#include "core/gemm.h"
#include "core/scale.h"
#include "core/singular.h"
#include "core/spread.h"
#include "core/square.h"

namespace poolexport {

//: A direction whose singular value is not above this share of the largest is no part of a subspace.
constexpr double RANK_BOUND = 0x1p-20;

// What becomes of a symmetric matrix: itself, its upper triangle row by row, or column by column.
enum class Layout { MATRIX, ROWS, COLUMNS };

inline Layout layout_of(const Attributes& attributes) {
  const std::string layout = attributes.get<std::string>("layout");
  if (layout == "matrix") return Layout::MATRIX;
  if (layout == "rows") return Layout::ROWS;
  if (layout == "columns") return Layout::COLUMNS;
  refuse("layout is '%s', and must be matrix, rows or columns", layout.c_str());
}

inline Shape packed_shape(const Shape& x, Layout layout) {
  if (layout == Layout::MATRIX) return {x[0], x[1], x[1]};
  return {x[0], triangle(x[1])};
}

// Some samples (c, m): their left singular vectors (n, c), values squared (n), by which power of two they were divided
// first, and which of them hold NaN or infinities.
struct Samples {
  int64_t first, number, c, m, n;
  double *vectors, *squares, *scales;
  const bool* spoilt;
  double* outers;  // (c, c), free for what is made of them

  // The place in the batch of one of them.
  int64_t place(int64_t sample) const { return first + sample; }
};

namespace detail {

// Copies a sample, divided, or zeros where it is spoilt.
template <class T>
bool make_safe(const T* x, int64_t count, double* to, double& scale) {
  double largest = 0;
  bool spoilt = false;
  for (int64_t i = 0; i < count; ++i) {
    to[i] = widen(x[i]);
    spoilt = spoilt || !std::isfinite(to[i]);
    largest = std::max(largest, std::fabs(to[i]));
  }
  scale = spoilt ? 1 : power_of_two(largest);
  for (int64_t i = 0; i < count; ++i) to[i] = spoilt ? 0 : to[i] / scale;
  return spoilt;
}

}  // namespace detail

// Decomposes all samples of the input, as many at a time as there is room for, and calls work(samples).
template <class Work>
void for_samples(const Call& call, const Work& work) {
  constexpr int64_t ROOM = int64_t{1} << 25;
  const Tensor& x = call.inputs[0];
  const int64_t batch = x.shape[0], c = x.shape[1], m = x.shape[2], n = std::min(c, m);
  const int64_t chunk = std::clamp<int64_t>(ROOM / (8 * (c * m + c * c + 1)), 1, batch);
  const std::unique_ptr<double[]> wide(new double[size_t(chunk * c * m)]), vectors(new double[size_t(chunk * n * c)]);
  const std::unique_ptr<double[]> squares(new double[size_t(chunk * n)]), scales(new double[size_t(chunk)]);
  const std::unique_ptr<double[]> outers(new double[size_t(chunk * c * c)]);
  const std::unique_ptr<bool[]> spoilt(new bool[size_t(chunk)]);
  for (int64_t first = 0; first < batch; first += chunk) {
    const int64_t number = std::min(chunk, batch - first);
    with_element(x.type, [&](auto element) {
      spread(call, number, [&](int64_t i, int64_t) {
        const auto* from = x.as<decltype(element)>() + (first + i) * c * m;
        spoilt[size_t(i)] = detail::make_safe(from, c * m, wide.get() + i * c * m, scales[size_t(i)]);
      });
    });
    left_vectors(call, number, c, m, wide.get(), vectors.get(), squares.get());
    work(Samples{first, number, c, m, n, vectors.get(), squares.get(), scales.get(), spoilt.get(), outers.get()});
  }
}

// Writes the sum of the vectors' outer products with themselves, each times its weight (n), times the sample's factor.
template <class T>
void write_outers(const Call& call, const Samples& s, const double* weights, const double* factors, Layout layout,
                  T* y) {
  const std::unique_ptr<double[]> weighted(new double[size_t(s.number * s.n * s.c)]);
  spread(call, s.number * s.n, [&](int64_t row, int64_t) {
    for (int64_t j = 0; j < s.c; ++j) weighted[size_t(row * s.c + j)] = weights[row] * s.vectors[row * s.c + j];
  });
  const View<double> left = dense<double>(weighted.get(), s.n, s.c).turned();
  const View<double> right = dense<double>(s.vectors, s.n, s.c);
  multiply<double>(call, Product<double>{s.number, s.c, s.c, s.n, left, right, s.outers, true});
  const int64_t size = layout == Layout::MATRIX ? s.c * s.c : triangle(s.c);
  spread(call, s.number, [&](int64_t sample, int64_t) {
    const double* const outer = s.outers + sample * s.c * s.c;
    T* to = y + s.place(sample) * size;
    // Symmetric: a column of the upper triangle is a row of the lower one.
    for (int64_t i = 0; i < s.c; ++i) {
      const int64_t begin = layout == Layout::ROWS ? i : 0, end = layout == Layout::COLUMNS ? i + 1 : s.c;
      for (int64_t j = begin; j < end; ++j)
        *to++ = narrow<T>(computed<T>(s.spoilt[sample] ? std::nan("") : factors[sample] * outer[i * s.c + j]));
    }
  });
}

}  // namespace poolexport
