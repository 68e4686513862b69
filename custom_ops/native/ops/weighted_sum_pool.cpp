// WeightedSumPool: a weighted sum of the cells of every window, channel by channel.
#include "core/window.h"

namespace poolexport {
namespace {

template <class T>
struct Job {
  Geometry g;
  const T *x, *weights;
  int64_t channels;  // rows of weights, one for every plane of a map or one for all
  T* y;
  computed<T>* scratch;
};

template <class T>
POOL_INLINE void rows_of(const Job<T>& job, size_t first, size_t last) {
  using C = computed<T>;
  const Geometry& g = job.g;
  const auto body = [&](const Block& b, T* y) __attribute__((always_inline)) {
    const T* plane = job.x + b.plane * g.plane_size();
    const T* weight = job.weights + b.plane % job.channels * g.cells;
    C sums[BLOCK];
    for (int64_t i = 0; i < b.width; ++i) sums[i] = 0;
    for_taps(g, b, plane, C(0), job.scratch, [&](int64_t k, const C* cells) __attribute__((always_inline)) {
      const C w = widen(weight[k]);
      for (int64_t i = 0; i < b.width; ++i) sums[i] += w * cells[i];
    });
    for (int64_t i = 0; i < b.width; ++i) y[i] = narrow<T>(sums[i]);
  };
  for_blocks(g, job.y, int64_t(first), int64_t(last), body);
}

POOL_FOR_EACH_ELEMENT(rows, Job)

struct WeightedSumPool final : Kernel {
  Window window;

  explicit WeightedSumPool(const Attributes& attributes) : window(attributes) {}

  std::vector<Shape> shapes(const std::vector<Tensor>& inputs) const override {
    const Shape &x = inputs[0].shape, &weights = inputs[1].shape;
    const Shape y = window.output_shape(x);
    const auto suits = [](int64_t length, int64_t needed) { return length == needed || length == UNKNOWN || needed == UNKNOWN; };
    if (weights.size() != 2 || !(weights[0] == 1 || suits(weights[0], x[1])) || !suits(weights[1], window.size()))
      refuse("weights must have shape (%lld, %lld) or (1, %lld), not %s", static_cast<long long>(x[1]),
             static_cast<long long>(window.size()), static_cast<long long>(window.size()), spelled(weights).c_str());
    return {y};
  }

  void compute(Call& call) const override {
    with_element(call.inputs[0].type, [&](auto element) {
      using T = decltype(element);
      const Geometry g(window, call.inputs[0].shape);
      for_rows<computed<T>>(call, g.rows(), BLOCK, [&](size_t first, size_t last, computed<T>* scratch) {
        rows({g, call.inputs[0].as<T>(), call.inputs[1].as<T>(), call.inputs[1].shape[0], call.output<T>(), scratch},
             first, last);
      });
    });
  }
};

}  // namespace

extern const Operator weighted_sum_pool{
    "WeightedSumPool", {Type::SAME, Type::SAME}, {Type::SAME}, create<WeightedSumPool>};

}  // namespace poolexport
