// SortedWeightedPool: the cells of every window in descending order, weighted by rank.
#include "core/sorting.h"
#include "core/taps.h"

namespace poolexport {
namespace {

template <class T>
struct Job {
  Geometry g;
  const std::vector<Comparator>& network;
  const double* weights;  // those for windows of one cell on the map, and so on; or one row for all windows
  int64_t step;           // from row to row
  bool padded;
  const T* x;
  T* y;
  computed<T>* scratch;
};

// The weighted sum of one sorted window.
template <class C>
POOL_INLINE C weighted(const double* weights, int64_t ranks, const C* cells, C spoilt) {
  C sum = 0;
  bool none = true;
  for (int64_t k = 0; k < ranks; ++k) {
    const C weight = C(weights[k]);
    if (weight == 0) continue;
    sum += weight * cells[k * BLOCK];
    none = false;
  }
  return none ? C(0) : sum + spoilt;
}

template <class T>
POOL_INLINE void rows_of(const Job<T>& job, size_t first, size_t last) {
  using C = computed<T>;
  const Geometry& g = job.g;
  C* const cells = job.scratch;
  const double* const whole = job.weights + (g.cells - 1) * job.step;
  for_blocks(g, job.y, int64_t(first), int64_t(last), [&](const Block& b, T* y) __attribute__((always_inline)) {
    gather(g, b, job.x + b.plane * g.plane_size(), C(-__builtin_inf()), cells);
    C spoilt[BLOCK], sum[BLOCK];
    int64_t inside[BLOCK];
    find_nan(g.cells, cells, b.width, spoilt);
    sort_rows(job.network, g.cells, cells, b.width);
    const auto weight = [&](int64_t k) __attribute__((always_inline)) { return C(whole[k]); };
    weigh_rows(weight, g.cells, cells, spoilt, sum, b.width);
    if (job.padded) {
      count_cells(g, b, inside);
      for (int64_t i = 0; i < b.width; ++i)
        if (inside[i] == 0)
          sum[i] = 0;
        else if (inside[i] != g.cells)
          sum[i] = weighted(job.weights + (inside[i] - 1) * job.step, inside[i], cells + i, spoilt[i]);
    }
    for (int64_t i = 0; i < b.width; ++i) y[i] = narrow<T>(sum[i]);
  });
}

POOL_FOR_EACH_ELEMENT(rows, Job)

struct SortedWeightedPool final : Kernel {
  Window window;
  bool padded = false;
  std::vector<double> weights;
  std::vector<Comparator> network;

  explicit SortedWeightedPool(const Attributes& attributes) : window(attributes) {
    const size_t size = size_t(window.size());
    require_sortable(window.size());
    for (size_t i = 0; i < window.rank(); ++i) padded = padded || window.begin[i] != 0 || window.end[i] != 0;
    const auto stored = attributes.get<std::vector<float>>("weights");
    const auto lost = attributes.get<std::vector<float>>("remainders", {});
    if ((stored.size() != size && stored.size() != size * size) || (!lost.empty() && lost.size() != stored.size()))
      refuse("weights hold %zu numbers and remainders %zu, and a window of %zu cells needs %zu or %zu", stored.size(),
             lost.size(), size, size, size * size);
    std::vector<bool> wanted(size, false);
    for (size_t i = 0; i < stored.size(); ++i) {
      weights.push_back(double(stored[i]) + (lost.empty() ? 0.0 : double(lost[i])));
      if (weights[i] - weights[i] != 0) refuse("weights must be finite numbers");
      const size_t rank = i % size;
      wanted[rank] = wanted[rank] || weights[i] != 0;
    }
    network = sorting_network(window.size(), wanted);
  }

  std::vector<Shape> shapes(const std::vector<Tensor>& inputs) const override {
    return {window.output_shape(inputs[0].shape)};
  }

  void compute(Call& call) const override {
    with_element(call.inputs[0].type, [&](auto element) {
      using T = decltype(element);
      const Geometry g(window, call.inputs[0].shape);
      const int64_t step = int64_t(weights.size()) == g.cells ? 0 : g.cells;
      for_rows<computed<T>>(call, g.rows(), size_t(g.cells * BLOCK), [&](size_t first, size_t last, auto* scratch) {
        rows({g, network, weights.data(), step, padded, call.inputs[0].as<T>(), call.output<T>(), scratch}, first, last);
      });
    });
  }
};

}  // namespace

extern const Operator sorted_weighted_pool{"SortedWeightedPool", {Type::SAME}, {Type::SAME}, create<SortedWeightedPool>};

}  // namespace poolexport
