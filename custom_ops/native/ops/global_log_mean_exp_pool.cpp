// GlobalLogMeanExpPool: a smooth maximum over whole axes, with a sharpness that may be learned.
#include "core/folding.h"
#include "core/inputs.h"
#include "core/larger.h"
#include "core/log_mean.h"

namespace poolexport {
namespace {

//: How far the largest exponent may be above that of the mean.
constexpr double FAR = 0.5;

template <class T>
struct Job {
  const Folding& f;
  const T* x;
  computed<T> r;
  T* y;
};

template <class T>
POOL_INLINE void pieces_of(const Job<T>& job, size_t first, size_t last) {
  using C = computed<T>;
  const auto add = [](double a, double b) __attribute__((always_inline)) { return a + b; };
  const C infinity = C(__builtin_inf());
  const double number = double(job.f.cells), r = double(job.r);
  for (size_t piece = first; piece < last; ++piece) {
    const int64_t width = job.f.width(int64_t(piece));
    C largest[LANES], level[LANES];
    double sums[LANES] = {}, less_one[LANES] = {};
    for (C& value : largest) value = -infinity;
    for_cells(job.f, int64_t(piece), job.x, [&](const T* cells, int64_t count) __attribute__((always_inline)) {
      for (int64_t i = 0; i < count; ++i) {
        const C cell = widen(cells[i]);
        largest[i] = larger(largest[i], cell);
        sums[i] += cell;
      }
    });
    join_lanes(job.f, largest, [](C a, C b) __attribute__((always_inline)) { return larger(a, b); });
    join_lanes(job.f, sums, add);
    for (int64_t i = 0; i < width; ++i) {
      const double mean = sums[i] / number;
      level[i] = r * (double(largest[i]) - mean) > FAR ? largest[i] : C(mean);
      level[i] = largest[i] == infinity || largest[i] == -infinity ? C(0) : level[i];
    }
    for (int64_t i = job.f.across ? LANES : 1; i < LANES; ++i) level[i] = level[0];
    for (double& sum : sums) sum = 0;
    for_cells(job.f, int64_t(piece), job.x, [&](const T* cells, int64_t count) __attribute__((always_inline)) {
      for (int64_t i = 0; i < count; ++i) {
        const Exponential<C> e = exponential(job.r * (widen(cells[i]) - level[i]));
        sums[i] += e.value;
        less_one[i] += e.less_one;
      }
    });
    join_lanes(job.f, sums, add);
    join_lanes(job.f, less_one, add);
    T* y = job.y + job.f.output(int64_t(piece));
    for (int64_t i = 0; i < width; ++i) {
      const C finite = C(double(level[i]) + log_mean(less_one[i] / number, sums[i] / number) / r);
      y[i] = narrow<T>(largest[i] == infinity || largest[i] == -infinity ? largest[i] : finite);
    }
  }
}

POOL_FOR_EACH_ELEMENT(pieces, Job)

struct GlobalLogMeanExpPool final : OverAxes {
  using OverAxes::OverAxes;

  std::vector<Shape> shapes(const std::vector<Tensor>& inputs) const override {
    require_one(inputs[1].shape, "r");
    return OverAxes::shapes(inputs);
  }

  void compute(Call& call) const override {
    each(call, [&](auto element, const Folding& f, size_t first, size_t last) {
      using T = decltype(element);
      pieces(Job<T>{f, call.inputs[0].as<T>(), widen(*call.inputs[1].as<T>()), call.output<T>()}, first, last);
    });
  }
};

}  // namespace

extern const Operator global_log_mean_exp_pool{
    "GlobalLogMeanExpPool", {Type::SAME, Type::SAME}, {Type::SAME}, create<GlobalLogMeanExpPool>};

}  // namespace poolexport
