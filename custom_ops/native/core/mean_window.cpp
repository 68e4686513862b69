#include "core/mean_window.h"

#include <cmath>

namespace poolexport {
namespace {

// S is the type of sums.
template <class T, class S>
struct Job {
  Geometry g;
  Coverage coverage;
  double divisor;
  const T* x;
  T* y;
  S* scratch;
};
template <class T>
using Plain = Job<T, computed<T>>;
template <class T>
using Precise = Job<T, double>;

template <class T, class S>
POOL_INLINE void divide(const S* __restrict sums, double divisor, T* __restrict y, int64_t count) {
  int exponent = 0;
  const S scale = S(1 / divisor), by = S(divisor);
  if (std::frexp(divisor, &exponent) == 0.5)
    for (int64_t i = 0; i < count; ++i) y[i] = narrow<T>(computed<T>(sums[i] * scale));
  else
    for (int64_t i = 0; i < count; ++i) y[i] = narrow<T>(computed<T>(sums[i] / by));
}

template <class T, class S>
POOL_INLINE void rows_of(const Job<T, S>& job, size_t first, size_t last) {
  const Geometry& g = job.g;
  const auto body = [&](const Block& b, T* y) __attribute__((always_inline)) {
    const T* plane = job.x + b.plane * g.plane_size();
    const auto cell = [&](int64_t at) __attribute__((always_inline)) { return S(widen(plane[at])); };
    S sums[WIDE];
    fold(g, b, S(0), job.scratch, sums, cell, Sum{});
    const int64_t lines = job.divisor != 0 ? 1 : job.coverage.along(g, 0, b.depth) * job.coverage.along(g, 1, b.row);
    const auto divisor = [&](int64_t i) {
      return job.divisor != 0 ? job.divisor : double(lines * job.coverage.along(g, 2, b.column + i));
    };
    // Away from the borders all windows of a row have one divisor; dilated ones at a border may have any.
    const double common = divisor(b.width / 2);
    int64_t low = b.width / 2, high = low;
    while (low > 0 && divisor(low - 1) == common) --low;
    while (high < b.width && divisor(high) == common) ++high;
    for (int64_t i = 0; i < low; ++i) divide(sums + i, divisor(i), y + i, 1);
    divide(sums + low, common, y + low, high - low);
    for (int64_t i = high; i < b.width; ++i) divide(sums + i, divisor(i), y + i, 1);
  };
  for_blocks<WIDE>(g, job.y, int64_t(first), int64_t(last), body);
}

template <class T>
POOL_INLINE void precise_rows_of(const Precise<T>& job, size_t first, size_t last) {
  rows_of(job, first, last);
}

POOL_FOR_EACH_ELEMENT(rows, Plain)
POOL_FOR_EACH_ELEMENT(precise_rows, Precise)

}  // namespace

void mean_windows(const Call& call, const Mean& mean) {
  with_element(call.inputs[0].type, [&](auto element) {
    using T = decltype(element);
    const Geometry g(mean.window, call.inputs[0].shape);
    const Coverage coverage(g, mean.counted);
    const double divisor = double(mean.divisor);
    const T* x = call.inputs[0].as<T>();
    if (mean.precise)
      for_rows<double>(call, g.rows(), fold_scratch(g), [&](size_t first, size_t last, double* scratch) {
        precise_rows({g, coverage, divisor, x, call.output<T>(), scratch}, first, last);
      });
    else
      for_rows<computed<T>>(call, g.rows(), fold_scratch(g), [&](size_t first, size_t last, computed<T>* scratch) {
        rows({g, coverage, divisor, x, call.output<T>(), scratch}, first, last);
      });
  });
}

}  // namespace poolexport
