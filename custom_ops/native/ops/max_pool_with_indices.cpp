// MaxPoolWithIndices: the largest cell of every window, and where it is.
#include "core/window.h"

namespace poolexport {
namespace {

// P holds positions: as narrow as values are where the plane allows it, so that both fill vectors alike.
template <class T, class P>
struct Job {
  Geometry g;
  const T* x;
  T* y;
  int64_t* indices;
};
template <class T>
using Small = Job<T, int32_t>;
template <class T>
using Large = Job<T, int64_t>;

// Takes what is larger, or NaN, or the first cell of its window; cells lie `stride` apart, the first of them at `at`.
template <class T, class P, class C>
POOL_INLINE void take_strided(const T* __restrict cells, P at, P stride, C* __restrict best, P* __restrict where,
                              int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const C cell = widen(cells[i * int64_t(stride)]);
    const bool better = (cell > best[i]) | (cell != cell) | (where[i] < 0);
    best[i] = better ? cell : best[i];
    where[i] = better ? P(at + P(i) * stride) : where[i];
  }
}

template <class T, class P, class C>
POOL_INLINE void take(const T* cells, P at, int64_t stride, C* best, P* where, int64_t count) {
  if (stride == 1)
    take_strided(cells, at, P(1), best, where, count);
  else if (stride == 2)
    take_strided(cells, at, P(2), best, where, count);
  else
    take_strided(cells, at, P(stride), best, where, count);
}

template <class T, class P>
POOL_INLINE void rows_of(const Job<T, P>& job, size_t first, size_t last) {
  using C = computed<T>;
  const Geometry& g = job.g;
  const auto body = [&](const Block& b, T* y) __attribute__((always_inline)) {
    const T* plane = job.x + b.plane * g.plane_size();
    int64_t* indices = job.indices + (y - job.y);
    C best[BLOCK];
    P where[BLOCK];
    for (int64_t i = 0; i < b.width; ++i) best[i] = C(-__builtin_inf()), where[i] = -1;
    for_lines(g, b, [&](bool there, int64_t offset) __attribute__((always_inline)) {
      for (int64_t kw = 0; there && kw < g.kernel[2]; ++kw) {
        const Reach r = reach(g, b, kw);
        const int64_t at = offset + r.column + r.low * g.stride[2];
        if (r.low >= r.high) continue;
        take(plane + at, P(at), g.stride[2], best + r.low, where + r.low, r.high - r.low);
      }
    });
    for (int64_t i = 0; i < b.width; ++i) y[i] = narrow<T>(best[i]);
    for (int64_t i = 0; i < b.width; ++i) indices[i] = where[i];
  };
  for_blocks(g, job.y, int64_t(first), int64_t(last), [&](const Block& b, T* y) __attribute__((always_inline)) {
    by_row(b, [&](const Block& piece, int64_t at) __attribute__((always_inline)) { body(piece, y + at); });
  });
}

POOL_FOR_EACH_ELEMENT(rows, Small)
POOL_FOR_EACH_ELEMENT(rows, Large)

struct MaxPoolWithIndices final : Kernel {
  Window window;

  explicit MaxPoolWithIndices(const Attributes& attributes) : window(attributes) {}

  std::vector<Shape> shapes(const std::vector<Tensor>& inputs) const override {
    const Shape y = window.output_shape(inputs[0].shape);
    return {y, y};
  }

  void compute(Call& call) const override {
    with_element(call.inputs[0].type, [&](auto element) {
      using T = decltype(element);
      const Geometry g(window, call.inputs[0].shape);
      for_rows<char>(call, g.rows(), 0, [&](size_t first, size_t last, char*) {
        const T* x = call.inputs[0].as<T>();
        if (g.plane_size() <= INT32_MAX)
          rows(Small<T>{g, x, call.output<T>(), call.output<int64_t>(1)}, first, last);
        else
          rows(Large<T>{g, x, call.output<T>(), call.output<int64_t>(1)}, first, last);
      });
    });
  }
};

}  // namespace

extern const Operator max_pool_with_indices{
    "MaxPoolWithIndices", {Type::SAME}, {Type::SAME, Type::INT64}, create<MaxPoolWithIndices>};

}  // namespace poolexport
