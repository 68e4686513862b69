// DetailPreservingPool: the mean of every window, weighted by how far each cell lies from a centre of the window.
#include "core/inputs.h"
#include "core/power.h"
#include "core/window.h"

namespace poolexport {
namespace {

enum class Divisor { NONE, SUM, MEAN };

template <class T>
struct Job {
  Geometry g;
  const T *x, *centre, *exponent, *log_bias;
  int64_t exponents, biases;  // one, or one for each channel
  int64_t channels;
  computed<T> epsilon;
  bool above_only;
  Divisor divisor;
  T* y;
  computed<T>* scratch;
};

template <class C>
constexpr C SMALLEST_NORMAL = sizeof(C) == 4 ? C(0x1p-126) : C(0x1p-1022);

// At least 1 and at most x: a power of two, so that dividing by it rounds nothing.
POOL_INLINE float power_below(float x) {
  return bits_as<float>(bits_as<uint32_t>(x > 1 ? x : 1.0f) & 0x7f800000u);
}
POOL_INLINE double power_below(double x) {
  return bits_as<double>(bits_as<uint64_t>(x > 1 ? x : 1.0) & 0x7ff0000000000000ULL);
}

template <class T>
POOL_INLINE void rows_of(const Job<T>& job, size_t first, size_t last) {
  using C = computed<T>;
  const Geometry& g = job.g;
  C *const cells = job.scratch, *const scores = cells + g.cells * BLOCK;
  for_blocks(g, job.y, int64_t(first), int64_t(last), [&](const Block& b, T* y) __attribute__((always_inline)) {
    gather(g, b, job.x + b.plane * g.plane_size(), C(0), cells);
    const T* centre = job.centre + (y - job.y);
    const int64_t channel = b.plane % job.channels;
    const C power = widen(job.exponent[job.exponents == 1 ? 0 : channel]);
    const C log_bias = widen(job.log_bias[job.biases == 1 ? 0 : channel]);
    C middle[BLOCK], unit[BLOCK], floor[BLOCK], divisor[BLOCK], bias[BLOCK], largest[BLOCK], below[BLOCK], above[BLOCK];
    for (int64_t i = 0; i < b.width; ++i) middle[i] = widen(centre[i]), unit[i] = 1, divisor[i] = 0;
    for (int64_t k = 0; k < g.cells; ++k) {
      const C* cell = cells + k * BLOCK;
      C* score = scores + k * BLOCK;
      for (int64_t i = 0; i < b.width; ++i) {
        const C difference = cell[i] - middle[i];
        score[i] = job.above_only && difference < 0 ? C(0) : difference;
        const C distance = score[i] < 0 ? -score[i] : score[i];
        unit[i] = distance > unit[i] ? distance : unit[i];
      }
    }
    for (int64_t i = 0; i < b.width; ++i) {
      const C scale = power_below(unit[i]);
      bias[i] = job.divisor == Divisor::NONE ? log_bias - 2 * power * log_of_normal(scale) : log_bias;
      unit[i] = 1 / scale;
      floor[i] = job.epsilon * unit[i] * unit[i];
      largest[i] = bias[i];
    }
    for (int64_t k = 0; k < g.cells; ++k) {
      C* score = scores + k * BLOCK;
      for (int64_t i = 0; i < b.width; ++i) {
        const C ratio = score[i] * unit[i], square = ratio * ratio + floor[i];
        score[i] = square < SMALLEST_NORMAL<C> ? SMALLEST_NORMAL<C> : square;
        divisor[i] += score[i];
      }
    }
    const C share = job.divisor == Divisor::MEAN ? C(g.cells) : C(1);
    for (int64_t i = 0; i < b.width; ++i) divisor[i] = job.divisor == Divisor::NONE ? C(1) : share / divisor[i];
    for (int64_t k = 0; k < g.cells; ++k) {
      C* score = scores + k * BLOCK;
      for (int64_t i = 0; i < b.width; ++i) {
        score[i] = power * log_of_normal(score[i] * divisor[i]);
        largest[i] = score[i] > largest[i] ? score[i] : largest[i];
      }
    }
    for (int64_t i = 0; i < b.width; ++i) bias[i] = exponential(bias[i] - largest[i]).value, below[i] = above[i] = 0;
    for (int64_t k = 0; k < g.cells; ++k) {
      C* score = scores + k * BLOCK;
      for (int64_t i = 0; i < b.width; ++i) {
        score[i] = exponential(score[i] - largest[i]).value + bias[i];
        below[i] += score[i];
      }
    }
    for (int64_t i = 0; i < b.width; ++i) below[i] = 1 / below[i];
    for (int64_t k = 0; k < g.cells; ++k) {
      const C *score = scores + k * BLOCK, *cell = cells + k * BLOCK;
      for (int64_t i = 0; i < b.width; ++i) above[i] += score[i] * below[i] * cell[i];
    }
    for (int64_t i = 0; i < b.width; ++i) y[i] = narrow<T>(above[i]);
  });
}

POOL_FOR_EACH_ELEMENT(rows, Job)

struct DetailPreservingPool final : Kernel {
  Window window;
  bool above_only;
  Divisor divisor;

  explicit DetailPreservingPool(const Attributes& attributes)
      : window(attributes), above_only(attributes.get<int64_t>("above_only") != 0) {
    for (size_t i = 0; i < window.rank(); ++i)
      if (window.begin[i] != 0 || window.end[i] != 0)
        refuse("a padded cell has no distance from the centre; pads must be 0");
    const std::string normalize = attributes.get<std::string>("normalize");
    if (normalize != "none" && normalize != "sum" && normalize != "mean")
      refuse("normalize must be mean, sum or none, not %.40s", normalize.c_str());
    divisor = normalize == "none" ? Divisor::NONE : normalize == "sum" ? Divisor::SUM : Divisor::MEAN;
  }

  std::vector<Shape> shapes(const std::vector<Tensor>& inputs) const override {
    const Shape y = window.output_shape(inputs[0].shape);
    require_shape(y, inputs[1].shape, "centre");
    require_per_channel(y, inputs[2].shape, "exponent");
    require_per_channel(y, inputs[3].shape, "log_bias");
    require_one(inputs[4].shape, "epsilon");
    return {y};
  }

  void compute(Call& call) const override {
    with_element(call.inputs[0].type, [&](auto element) {
      using T = decltype(element);
      const std::vector<Tensor>& in = call.inputs;
      const Geometry g(window, in[0].shape);
      for_rows<computed<T>>(call, g.rows(), size_t(2 * g.cells * BLOCK), [&](size_t first, size_t last, auto* scratch) {
        rows({g, in[0].as<T>(), in[1].as<T>(), in[2].as<T>(), in[3].as<T>(), int64_t(count(in[2].shape)),
              int64_t(count(in[3].shape)), in[0].shape[1], widen(*in[4].as<T>()), above_only, divisor, call.output<T>(),
              scratch},
             first, last);
      });
    });
  }
};

}  // namespace

extern const Operator detail_preserving_pool{
    "DetailPreservingPool",
    {Type::SAME, Type::SAME, Type::SAME, Type::SAME, Type::SAME},
    {Type::SAME},
    create<DetailPreservingPool>};

}  // namespace poolexport
