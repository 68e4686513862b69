#include "core/max_window.h"

namespace poolexport {
namespace {

template <class T>
struct Job {
  Geometry g;
  Tiling tiling;
  const T* x;
  T* y;
};

template <class T>
POOL_INLINE void rows_of(const Job<T>& job, size_t first, size_t last) {
  using C = computed<T>;
  const auto body = [&](const Tile& t, T* y) __attribute__((always_inline)) {
    const T* plane = job.x + t.plane * job.g.plane_size();
    const auto cell = [&](int64_t at) __attribute__((always_inline)) { return widen(plane[at]); };
    C largest[TILE];
    fold(job.g, t, C(-__builtin_inf()), largest, cell, Larger{});
    for_results(job.g, t, y, [&](int64_t from, T* to, int64_t count) __attribute__((always_inline)) {
      for (int64_t i = 0; i < count; ++i) to[i] = narrow<T>(largest[from + i]);
    });
  };
  for_tiles(job.g, job.tiling, job.y, int64_t(first), int64_t(last), body);
}

POOL_FOR_EACH_ELEMENT(rows, Job)

}  // namespace

void max_windows(const Call& call, const Window& window) {
  with_element(call.inputs[0].type, [&](auto element) {
    using T = decltype(element);
    const Geometry g(window, call.inputs[0].shape);
    const Job<T> job{g, Tiling(g, false), call.inputs[0].as<T>(), call.output<T>()};
    call.split(size_t(g.rows()), [&](size_t first, size_t last, size_t) { rows(job, first, last); });
  });
}

}  // namespace poolexport
