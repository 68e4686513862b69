// SoftmaxPool: the mean of every window of x, weighted by the softmax of logits over the window.
#include "core/math.h"
#include "core/taps.h"

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
constexpr C VANISHING = sizeof(C) == 4 ? C(-104) : C(-746);

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
    const int64_t width = whole_pieces(scores, g.cells, b.width);
    if (!shared) whole_pieces(cells, g.cells, b.width);
    C largest[BLOCK], above[BLOCK], below[BLOCK];
    largest_cells(g, width, scores, largest);
    for (int64_t i = 0; i < width; ++i) above[i] = below[i] = 0;
    for (int64_t k = 0; k < g.cells; ++k) {
      const C *score = scores + k * BLOCK, *cell = cells + k * BLOCK;
      for (int64_t i = 0; i < width; ++i) {
        const C shifted = score[i] - largest[i], weight = exp_of_negative(shifted);
        above[i] += shifted < VANISHING<C> ? C(0) : weight * cell[i];
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
      const int64_t repeat = channels_sharing(call.inputs[0].shape, call.inputs[1].shape);
      for_rows<computed<T>>(call, g.rows(), size_t(2 * g.cells * BLOCK), [&](size_t first, size_t last, auto* scratch) {
        rows({g, call.inputs[0].as<T>(), call.inputs[1].as<T>(), repeat, call.output<T>(), scratch}, first, last);
      });
    });
  }
};

}  // namespace

extern const Operator softmax_pool{"SoftmaxPool", {Type::SAME, Type::SAME}, {Type::SAME}, create<SoftmaxPool>};

}  // namespace poolexport
