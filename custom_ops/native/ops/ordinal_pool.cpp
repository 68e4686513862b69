// OrdinalPool: the cells of every window in descending order, weighted by a tensor of weights per channel and rank.
#include "core/inputs.h"
#include "core/sorting.h"

namespace poolexport {
namespace {

template <class T>
struct Job {
  Geometry g;
  const std::vector<Comparator>& network;
  const T *x, *weights;
  int64_t sets, channels;  // of weights: one, or one for each channel
  T* y;
  computed<T>* scratch;
};

template <class T>
POOL_INLINE void rows_of(const Job<T>& job, size_t first, size_t last) {
  using C = computed<T>;
  const Geometry& g = job.g;
  C* const cells = job.scratch;
  for_blocks(g, job.y, int64_t(first), int64_t(last), [&](const Block& b, T* y) __attribute__((always_inline)) {
    gather(g, b, job.x + b.plane * g.plane_size(), C(0), cells);
    const T* weights = job.weights + (job.sets == 1 ? 0 : b.plane % job.channels * g.cells);
    C spoilt[BLOCK], sum[BLOCK];
    find_nan(g.cells, cells, b.width, spoilt);
    sort_rows(job.network, g.cells, cells, b.width);
    const auto weight = [&](int64_t k) __attribute__((always_inline)) { return C(widen(weights[k])); };
    weigh_rows(weight, g.cells, cells, spoilt, sum, b.width);
    for (int64_t i = 0; i < b.width; ++i) y[i] = narrow<T>(sum[i]);
  });
}

POOL_FOR_EACH_ELEMENT(rows, Job)

struct OrdinalPool final : Kernel {
  Window window;
  std::vector<Comparator> network;

  explicit OrdinalPool(const Attributes& attributes) : window(attributes) {
    require_sortable(window.size());
    network = sorting_network(window.size(), std::vector<bool>(size_t(window.size()), true));
  }

  std::vector<Shape> shapes(const std::vector<Tensor>& inputs) const override {
    const Shape y = window.output_shape(inputs[0].shape);
    const bool one = inputs[1].shape.size() == 2 && inputs[1].shape[0] == 1;
    require_shape({one ? 1 : y[1], window.size()}, inputs[1].shape, "weights");
    return {y};
  }

  void compute(Call& call) const override {
    with_element(call.inputs[0].type, [&](auto element) {
      using T = decltype(element);
      const Tensor &x = call.inputs[0], &weights = call.inputs[1];
      const Geometry g(window, x.shape);
      for_rows<computed<T>>(call, g.rows(), size_t(g.cells * BLOCK), [&](size_t first, size_t last, auto* scratch) {
        rows({g, network, x.as<T>(), weights.as<T>(), weights.shape[0], x.shape[1], call.output<T>(), scratch}, first,
             last);
      });
    });
  }
};

}  // namespace

extern const Operator ordinal_pool{"OrdinalPool", {Type::SAME, Type::SAME}, {Type::SAME}, create<OrdinalPool>};

}  // namespace poolexport
