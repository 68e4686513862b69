// GlobalMaxPool: the largest cell over whole axes; NaN where one is NaN.
#include "core/folding.h"
#include "core/larger.h"

namespace poolexport {
namespace {

template <class T>
struct Job {
  const Folding& f;
  const T* x;
  T* y;
};

template <class T>
POOL_INLINE void pieces_of(const Job<T>& job, size_t first, size_t last) {
  using C = computed<T>;
  for (size_t piece = first; piece < last; ++piece) {
    C largest[LANES];
    for (C& value : largest) value = C(-__builtin_inf());
    for_cells(job.f, int64_t(piece), job.x, [&](const T* cells, int64_t count) __attribute__((always_inline)) {
      for (int64_t i = 0; i < count; ++i) largest[i] = larger(largest[i], widen(cells[i]));
    });
    join_lanes(job.f, largest, [](C a, C b) __attribute__((always_inline)) { return larger(a, b); });
    T* y = job.y + job.f.output(int64_t(piece));
    for (int64_t i = 0; i < job.f.width(int64_t(piece)); ++i) y[i] = narrow<T>(largest[i]);
  }
}

POOL_FOR_EACH_ELEMENT(pieces, Job)

struct GlobalMaxPool final : OverAxes {
  using OverAxes::OverAxes;

  void compute(Call& call) const override {
    each(call, [&](auto element, const Folding& f, size_t first, size_t last) {
      using T = decltype(element);
      pieces(Job<T>{f, call.inputs[0].as<T>(), call.output<T>()}, first, last);
    });
  }
};

}  // namespace

extern const Operator global_max_pool{"GlobalMaxPool", {Type::SAME}, {Type::SAME}, create<GlobalMaxPool>};

}  // namespace poolexport
