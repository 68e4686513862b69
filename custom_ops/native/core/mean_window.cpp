#include "core/mean_window.h"

#include <cmath>

namespace poolexport {
namespace {

// S is the type of sums.
template <class T, class S>
struct Job {
  Geometry g;
  Tiling tiling;
  Coverage coverage;
  double divisor;
  const T* x;
  T* y;
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
  const auto body = [&](const Tile& t, T* y) __attribute__((always_inline)) {
    const T* plane = job.x + t.plane * g.plane_size();
    const auto cell = [&](int64_t at) __attribute__((always_inline)) { return S(widen(plane[at])); };
    S sums[TILE];
    fold(g, t, S(0), sums, cell, Sum{});
    const auto across = [&](int64_t i) { return job.coverage.along(g, 2, t.column + i); };
    const auto lines = [&](int64_t row) {
      return job.coverage.along(g, 0, t.depth) * job.coverage.along(g, 1, t.row + row);
    };
    const auto divisor = [&](int64_t row, int64_t i) {
      return job.divisor != 0 ? job.divisor : double(lines(row) * across(i));
    };
    // Away from the borders all windows of a row have one divisor; dilated ones at a border may have any.
    const int64_t middle = t.width / 2, common = across(middle);
    int64_t low = middle, high = middle;
    while (low > 0 && (job.divisor != 0 || across(low - 1) == common)) --low;
    while (high < t.width && (job.divisor != 0 || across(high) == common)) ++high;
    const bool seamless = low == 0 && high == t.width && t.seamless(g);
    for (int64_t row = 0, end = 1; row < t.rows; row = end++) {
      while (seamless && end < t.rows && (job.divisor != 0 || lines(end) == lines(row))) ++end;
      const S* const from = sums + row * t.pitch;
      T* const to = y + row * g.output[2];
      for (int64_t i = 0; i < low; ++i) divide(from + i, divisor(row, i), to + i, 1);
      divide(from + low, divisor(row, middle), to + low, (end - row - 1) * t.pitch + high - low);
      for (int64_t i = high; i < t.width; ++i) divide(from + i, divisor(row, i), to + i, 1);
    }
  };
  for_tiles(g, job.tiling, job.y, int64_t(first), int64_t(last), body);
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
    const Tiling tiling(g, false);
    const double divisor = double(mean.divisor);
    const T* x = call.inputs[0].as<T>();
    call.split(size_t(g.rows()), [&](size_t first, size_t last, size_t) {
      if (mean.precise)
        precise_rows({g, tiling, coverage, divisor, x, call.output<T>()}, first, last);
      else
        rows({g, tiling, coverage, divisor, x, call.output<T>()}, first, last);
    });
  });
}

}  // namespace poolexport
