#include "core/max_window.h"

namespace poolexport {
namespace {

template <class T>
struct Job {
  Geometry g;
  const T* x;
  T* y;
  computed<T>* scratch;
};

template <class T>
POOL_INLINE void rows_of(const Job<T>& job, size_t first, size_t last) {
  using C = computed<T>;
  const auto body = [&](const Block& b, T* y) __attribute__((always_inline)) {
    const T* plane = job.x + b.plane * job.g.plane_size();
    const auto cell = [&](int64_t at) __attribute__((always_inline)) { return widen(plane[at]); };
    if constexpr (std::is_same_v<T, C>) {
      fold(job.g, b, C(-__builtin_inf()), job.scratch, y, cell, Larger{});
    } else {
      C largest[WIDE];
      fold(job.g, b, C(-__builtin_inf()), job.scratch, largest, cell, Larger{});
      for (int64_t i = 0; i < b.width; ++i) y[i] = narrow<T>(largest[i]);
    }
  };
  for_blocks<WIDE>(job.g, job.y, int64_t(first), int64_t(last), body);
}

POOL_FOR_EACH_ELEMENT(rows, Job)

}  // namespace

void max_windows(const Call& call, const Window& window) {
  with_element(call.inputs[0].type, [&](auto element) {
    using T = decltype(element);
    const Geometry g(window, call.inputs[0].shape);
    for_rows<computed<T>>(call, g.rows(), fold_scratch(g), [&](size_t first, size_t last, auto* scratch) {
      rows({g, call.inputs[0].as<T>(), call.output<T>(), scratch}, first, last);
    });
  });
}

}  // namespace poolexport
