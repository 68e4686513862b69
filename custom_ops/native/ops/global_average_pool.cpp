// GlobalAveragePool: the mean over whole axes, summed in float64.
#include "core/folding.h"

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
  for (size_t piece = first; piece < last; ++piece) {
    double sums[LANES] = {};
    for_cells(job.f, int64_t(piece), job.x, [&](const T* cells, int64_t count) __attribute__((always_inline)) {
      for (int64_t i = 0; i < count; ++i) sums[i] += widen(cells[i]);
    });
    join_lanes(job.f, sums, [](double a, double b) __attribute__((always_inline)) { return a + b; });
    T* y = job.y + job.f.output(int64_t(piece));
    const double cells = double(job.f.cells);
    for (int64_t i = 0; i < job.f.width(int64_t(piece)); ++i) y[i] = narrow<T>(computed<T>(sums[i] / cells));
  }
}

POOL_FOR_EACH_ELEMENT(pieces, Job)

struct GlobalAveragePool final : OverAxes {
  using OverAxes::OverAxes;

  void compute(Call& call) const override {
    each(call, [&](auto element, const Folding& f, size_t first, size_t last) {
      using T = decltype(element);
      pieces(Job<T>{f, call.inputs[0].as<T>(), call.output<T>()}, first, last);
    });
  }
};

}  // namespace

extern const Operator global_average_pool{"GlobalAveragePool", {Type::SAME}, {Type::SAME}, create<GlobalAveragePool>};

}  // namespace poolexport
