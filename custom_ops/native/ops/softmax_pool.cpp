// SoftmaxPool: the mean of every window of x, weighted by the softmax of logits over the window.
#include "core/larger.h"
#include "core/math.h"
#include "core/window.h"

namespace poolexport {
namespace {

template <class T>
struct Job {
  Geometry g;
  const T *x, *logits;
  int64_t repeat;  // channels of x that share a plane of logits
  T* y;
  computed<T>* scratch;
};

// Below this exp is 0, and the cell adds nothing whatever it holds.
template <class C>
constexpr C UNDERFLOW = sizeof(C) == 4 ? C(-104) : C(-746);

//: Outputs that are computed at once at most.
constexpr int64_t LANES = 16;

template <class C>
POOL_INLINE void pad_rows(C* rows, int64_t count, int64_t from, int64_t to) {
  for (int64_t k = 0; k < count; ++k)
    for (int64_t i = from; i < to; ++i) rows[k * BLOCK + i] = 0;
}

template <class T>
POOL_INLINE void rows_of(const Job<T>& job, size_t first, size_t last) {
  using C = computed<T>;
  const Geometry& g = job.g;
  const bool shared = job.x == job.logits;
  C* const scores = job.scratch;
  C* const cells = shared ? scores : scores + g.cells * BLOCK;
  for_blocks(g, job.y, int64_t(first), int64_t(last), [&](const Block& b, T* y) __attribute__((always_inline)) {
    gather(g, b, job.logits + b.plane / job.repeat * g.plane_size(), C(-__builtin_inf()), scores);
    if (!shared) gather(g, b, job.x + b.plane * g.plane_size(), C(0), cells);
    // Whole vectors: what is left over would be computed one by one.
    const int64_t width = (b.width + LANES - 1) / LANES * LANES;
    pad_rows(scores, g.cells, b.width, width);
    if (!shared) pad_rows(cells, g.cells, b.width, width);
    C largest[BLOCK], above[BLOCK], below[BLOCK];
    for (int64_t i = 0; i < width; ++i) largest[i] = scores[i], above[i] = below[i] = 0;
    for (int64_t k = 1; k < g.cells; ++k) {
      const C* score = scores + k * BLOCK;
      for (int64_t i = 0; i < width; ++i) largest[i] = larger(largest[i], score[i]);
    }
    for (int64_t k = 0; k < g.cells; ++k) {
      const C *score = scores + k * BLOCK, *cell = cells + k * BLOCK;
      for (int64_t i = 0; i < width; ++i) {
        const C shifted = score[i] - largest[i], weight = exp_of_negative(shifted);
        above[i] += shifted < UNDERFLOW<C> ? C(0) : weight * cell[i];
        below[i] += weight;
      }
    }
    for (int64_t i = 0; i < b.width; ++i) y[i] = narrow<T>(above[i] / below[i]);
  });
}

POOL_FOR_EACH_ELEMENT(rows, Job)

struct SoftmaxPool final : Kernel {
  Window window;

  explicit SoftmaxPool(const Attributes& attributes) : window(attributes) {}

  std::vector<Shape> shapes(const std::vector<Tensor>& inputs) const override {
    require_like(inputs[0].shape, inputs[1].shape, "logits");
    return {window.output_shape(inputs[0].shape)};
  }

  void compute(Call& call) const override {
    with_element(call.inputs[0].type, [&](auto element) {
      using T = decltype(element);
      const Geometry g(window, call.inputs[0].shape);
      const int64_t repeat = call.inputs[0].shape[1] / std::max<int64_t>(1, call.inputs[1].shape[1]);
      for_rows<computed<T>>(call, g.rows(), size_t(2 * g.cells * BLOCK), [&](size_t first, size_t last, auto* scratch) {
        rows({g, call.inputs[0].as<T>(), call.inputs[1].as<T>(), repeat, call.output<T>(), scratch}, first, last);
      });
    });
  }
};

}  // namespace

extern const Operator softmax_pool{"SoftmaxPool", {Type::SAME, Type::SAME}, {Type::SAME}, create<SoftmaxPool>};

}  // namespace poolexport
