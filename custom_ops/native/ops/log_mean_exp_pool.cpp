// LogMeanExpPool: a smooth maximum of every window, with a sharpness that may be learned.
#include "core/inputs.h"
#include "core/log_mean.h"
#include "core/taps.h"

namespace poolexport {
namespace {

template <class T>
struct Job {
  Geometry g;
  const T *x, *sharpness;
  int64_t sharpnesses, channels;  // one, or one for each channel
  T* y;
  computed<T>* scratch;
};

template <class T>
POOL_INLINE void rows_of(const Job<T>& job, size_t first, size_t last) {
  using C = computed<T>;
  const Geometry& g = job.g;
  C* const cells = job.scratch;
  const C infinity = C(__builtin_inf());
  for_blocks(g, job.y, int64_t(first), int64_t(last), [&](const Block& b, T* y) __attribute__((always_inline)) {
    gather(g, b, job.x + b.plane * g.plane_size(), -infinity, cells);
    const C r = widen(job.sharpness[job.sharpnesses == 1 ? 0 : b.plane % job.channels]);
    const int64_t width = whole_pieces(cells, g.cells, b.width);
    C largest[BLOCK], level[BLOCK], less_one[BLOCK], sum[BLOCK], inside[BLOCK], there[BLOCK] = {};
    largest_cells(g, width, cells, largest);
    for (int64_t i = 0; i < width; ++i) {
      level[i] = largest[i] == infinity || largest[i] == -infinity ? C(0) : largest[i];
      less_one[i] = sum[i] = inside[i] = 0;
    }
    for_taps(g, b, there, [&](int64_t k) __attribute__((always_inline)) {
      const C* cell = cells + k * BLOCK;
      for (int64_t i = 0; i < width; ++i) {
        const Exponential<C> e = exponential(r * (cell[i] - level[i]));
        less_one[i] += there[i] == 0 ? C(0) : e.less_one;
        sum[i] += there[i] == 0 ? C(0) : e.value;
        inside[i] += there[i];
      }
    });
    for (int64_t i = 0; i < b.width; ++i) {
      const C finite = level[i] + log_mean(less_one[i] / inside[i], sum[i] / inside[i]) / r;
      y[i] = narrow<T>(largest[i] == infinity || largest[i] == -infinity ? largest[i] : finite);
    }
  });
}

POOL_FOR_EACH_ELEMENT(rows, Job)

struct LogMeanExpPool final : Kernel {
  Window window;

  explicit LogMeanExpPool(const Attributes& attributes) : window(attributes) {}

  std::vector<Shape> shapes(const std::vector<Tensor>& inputs) const override {
    const Shape y = window.output_shape(inputs[0].shape);
    require_per_channel(y, inputs[1].shape, "r");
    return {y};
  }

  void compute(Call& call) const override {
    with_element(call.inputs[0].type, [&](auto element) {
      using T = decltype(element);
      const Tensor &x = call.inputs[0], &r = call.inputs[1];
      const Geometry g(window, x.shape);
      for_rows<computed<T>>(call, g.rows(), size_t(g.cells * BLOCK), [&](size_t first, size_t last, auto* scratch) {
        rows({g, x.as<T>(), r.as<T>(), r.shape[0], x.shape[1], call.output<T>(), scratch}, first, last);
      });
    });
  }
};

}  // namespace

extern const Operator log_mean_exp_pool{
    "LogMeanExpPool", {Type::SAME, Type::SAME}, {Type::SAME}, create<LogMeanExpPool>};

}  // namespace poolexport
