// WeightedAveragePool: the mean of every window, weighted by given weights.
#include "core/fold.h"
#include "core/scale.h"

namespace poolexport {
namespace {

template <class T>
struct Job {
  Geometry g;
  Tiling tiling;
  const T *x, *weights;
  int64_t repeat;  // channels of x that share a plane of weights
  T* y;
};

// Where every number but 0 lies between these, no product and no sum leaves the range or loses digits.
template <class C>
constexpr C SMALLEST = sizeof(C) == 4 ? C(0x1p-50) : C(0x1p-400);
template <class C>
constexpr C LARGEST = sizeof(C) == 4 ? C(0x1p45) : C(0x1p400);

// The mean of window i by its definition, whatever the range of weights and cells.
template <class T>
double careful(const Job<T>& job, const Block& b, int64_t i) {
  const Geometry& g = job.g;
  const T* plane = job.x + b.plane * g.plane_size();
  const T* weights = job.weights + b.plane / job.repeat * g.plane_size();
  const auto each = [&](auto&& body) {
    for_lines(g, b, [&](bool there, int64_t offset) {
      for (int64_t kw = 0; there && kw < g.kernel[2]; ++kw) {
        const int64_t w = (b.column + i) * g.stride[2] - g.begin[2] + kw * g.dilation[2];
        if (w >= 0 && w < g.length[2]) body(double(widen(weights[offset + w])), double(widen(plane[offset + w])));
      }
    });
  };
  double largest = 0, sum = 0, mean = 0;
  each([&](double weight, double) { largest = Larger{}(largest, std::fabs(weight)); });
  const double scale = power_of_two(largest);
  each([&](double weight, double) { sum += weight / scale; });
  if (sum == 0) return 0;
  each([&](double weight, double x) { mean += weight / scale / sum * x; });
  return mean;
}

template <class T>
POOL_INLINE void rows_of(const Job<T>& job, size_t first, size_t last) {
  using C = computed<T>;
  using Bits = std::conditional_t<sizeof(C) == 4, uint32_t, uint64_t>;
  const Geometry& g = job.g;
  const auto body = [&](const Tile& t, T* y) __attribute__((always_inline)) {
    const T* plane = job.x + t.plane * g.plane_size();
    const T* weights = job.weights + t.plane / job.repeat * g.plane_size();
    // The least of all numbers but 0, less one, and the largest; a negative weight is larger than any.
    Bits least = ~Bits{0}, most = 0;
    const auto note = [&](Bits bits) __attribute__((always_inline)) {
      least = bits - 1 < least ? bits - 1 : least;
      most = bits > most ? bits : most;
    };
    const auto weight = [&](int64_t at) __attribute__((always_inline)) {
      const C w = widen(weights[at]);
      note(bits_as<Bits>(w + C(0)));
      return w;
    };
    const auto product = [&](int64_t at) __attribute__((always_inline)) {
      const C x = widen(plane[at]);
      note(bits_as<Bits>(x < 0 ? -x : x + C(0)));
      return x * C(widen(weights[at]));
    };
    C below[TILE], above[TILE];
    fold(g, t, C(0), below, weight, Sum{});
    fold(g, t, C(0), above, product, Sum{});
    for_results(g, t, y, [&](int64_t from, T* to, int64_t count) __attribute__((always_inline)) {
      for (int64_t i = 0; i < count; ++i) {
        const C divisor = below[from + i];
        to[i] = narrow<T>(above[from + i] / (divisor == 0 ? C(1) : divisor));
      }
    });
    if (least >= bits_as<Bits>(SMALLEST<C>) - 1 && most <= bits_as<Bits>(LARGEST<C>)) return;
    for (int64_t row = 0; row < t.rows; ++row)
      for (int64_t i = 0; i < t.width; ++i)
        y[row * g.output[2] + i] = narrow<T>(C(careful(job, {t.plane, t.depth, t.row + row, t.column, t.width}, i)));
  };
  for_tiles(g, job.tiling, job.y, int64_t(first), int64_t(last), body);
}

POOL_FOR_EACH_ELEMENT(rows, Job)

struct WeightedAveragePool final : Kernel {
  Window window;

  explicit WeightedAveragePool(const Attributes& attributes) : window(attributes) {}

  std::vector<Shape> shapes(const std::vector<Tensor>& inputs) const override {
    require_like(inputs[0].shape, inputs[1].shape, "weights");
    return {window.output_shape(inputs[0].shape)};
  }

  void compute(Call& call) const override {
    with_element(call.inputs[0].type, [&](auto element) {
      using T = decltype(element);
      const Geometry g(window, call.inputs[0].shape);
      const int64_t repeat = channels_sharing(call.inputs[0].shape, call.inputs[1].shape);
      const Job<T> job{g,      Tiling(g, false), call.inputs[0].as<T>(), call.inputs[1].as<T>(),
                       repeat, call.output<T>()};
      call.split(size_t(g.rows()), [&](size_t first, size_t last, size_t) { rows(job, first, last); });
    });
  }
};

}  // namespace

extern const Operator weighted_average_pool{
    "WeightedAveragePool", {Type::SAME, Type::SAME}, {Type::SAME}, create<WeightedAveragePool>};

}  // namespace poolexport
