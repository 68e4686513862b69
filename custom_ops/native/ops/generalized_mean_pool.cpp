// GeneralizedMeanPool: the power mean of every window, with an order that may be learned. Computed in float64: the root
// of a low order magnifies the rounding of the mean by its reciprocal.
#include <algorithm>

#include "core/inputs.h"
#include "core/power.h"
#include "core/taps.h"

namespace poolexport {
namespace {

template <class T>
struct Job {
  Geometry g;
  const T *x, *order;
  int64_t orders, channels;  // one, or one for each channel
  T* y;
  double* scratch;
};

template <class T>
POOL_INLINE void rows_of(const Job<T>& job, size_t first, size_t last) {
  const Geometry& g = job.g;
  double* const cells = job.scratch;
  const double infinity = __builtin_inf();
  for_blocks(g, job.y, int64_t(first), int64_t(last), [&](const Block& b, T* y) __attribute__((always_inline)) {
    gather(g, b, job.x + b.plane * g.plane_size(), 0.0, cells);
    const Power order(widen(job.order[job.orders == 1 ? 0 : b.plane % job.channels])), root(1 / order.exponent);
    double scale[BLOCK], mean[BLOCK], inside[BLOCK];
    // Most of a vector is made a whole one: numbers by themselves take as long each as all of them together.
    const int64_t rest = b.width % 8, width = rest > 4 ? b.width - rest + 8 : b.width;
    std::fill(scale + b.width, scale + width, 1.0);
    std::fill(inside + b.width, inside + width, 1.0);
    largest_cells(g, b.width, cells, scale);
    count_cells(g, b, inside);
    for (int64_t i = 0; i < width; ++i) {
      scale[i] = scale[i] == 0 || scale[i] == infinity || scale[i] == -infinity ? 1 : scale[i];
      mean[i] = 0;
    }
    for (int64_t k = 0; k < g.cells; ++k) {
      double* cell = cells + k * BLOCK;
      std::fill(cell + b.width, cell + width, 1.0);
      for (int64_t i = 0; i < width; ++i) cell[i] /= scale[i];
      order.raise(cell, width);
      for (int64_t i = 0; i < width; ++i) mean[i] += cell[i];
    }
    for (int64_t i = 0; i < width; ++i) mean[i] /= inside[i];
    root.raise(mean, width);
    for (int64_t i = 0; i < b.width; ++i) y[i] = narrow<T>(computed<T>(scale[i] * mean[i]));
  });
}

POOL_FOR_EACH_ELEMENT(rows, Job)

struct GeneralizedMeanPool final : Kernel {
  Window window;

  explicit GeneralizedMeanPool(const Attributes& attributes) : window(attributes) {}

  std::vector<Shape> shapes(const std::vector<Tensor>& inputs) const override {
    const Shape y = window.output_shape(inputs[0].shape);
    require_per_channel(y, inputs[1].shape, "p");
    return {y};
  }

  void compute(Call& call) const override {
    with_element(call.inputs[0].type, [&](auto element) {
      using T = decltype(element);
      const Tensor &x = call.inputs[0], &p = call.inputs[1];
      const Geometry g(window, x.shape);
      for_rows<double>(call, g.rows(), size_t(g.cells * BLOCK), [&](size_t first, size_t last, double* scratch) {
        rows({g, x.as<T>(), p.as<T>(), p.shape[0], x.shape[1], call.output<T>(), scratch}, first, last);
      });
    });
  }
};

}  // namespace

extern const Operator generalized_mean_pool{
    "GeneralizedMeanPool", {Type::SAME, Type::SAME}, {Type::SAME}, create<GeneralizedMeanPool>};

}  // namespace poolexport
