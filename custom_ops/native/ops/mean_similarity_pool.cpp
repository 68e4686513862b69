// MeanSimilarityPool: the mean of every window, weighted by how close its cells are to their plain mean.
#include "core/power.h"
#include "core/taps.h"

namespace poolexport {
namespace {

enum class Weighting { DICE, SIGNED_DICE, INVERSE_DISTANCE };

template <class T>
struct Job {
  Geometry g;
  const T* x;
  Weighting weighting;
  T* y;
  computed<T>* scratch;
};

// One over a power of two near x, which is not negative, so that squares of what it multiplies stay in range.
POOL_INLINE float unit_for(float x) {
  x = x < 0x1p-126f ? 0x1p-126f : x;
  x = x > 0x1p126f ? 0x1p126f : x;
  return bits_as<float>((254u << 23) - (bits_as<uint32_t>(x) & 0x7f800000u));
}
POOL_INLINE double unit_for(double x) {
  x = x < 0x1p-1022 ? 0x1p-1022 : x;
  x = x > 0x1p1022 ? 0x1p1022 : x;
  return bits_as<double>((uint64_t{2046} << 52) - (bits_as<uint64_t>(x) & 0x7ff0000000000000ULL));
}

template <class C>
POOL_INLINE C magnitude(C x) {
  return x < 0 ? -x : x;
}

// 2 x m / (x^2 + m^2).
template <class C>
POOL_INLINE C similarity(C x, C m, bool with_sign) {
  const C unit = unit_for(larger(magnitude(x), magnitude(m))), u = x * unit, v = m * unit;
  const C product = with_sign ? u * v : magnitude(u * v), squares = u * u + v * v;
  return 2 * product / (squares == 0 ? C(1) : squares);
}

template <class T>
POOL_INLINE void rows_of(const Job<T>& job, size_t first, size_t last) {
  using C = computed<T>;
  const Geometry& g = job.g;
  const bool with_sign = job.weighting == Weighting::SIGNED_DICE;
  C* const cells = job.scratch;
  for_blocks(g, job.y, int64_t(first), int64_t(last), [&](const Block& b, T* y) __attribute__((always_inline)) {
    gather(g, b, job.x + b.plane * g.plane_size(), C(0), cells);
    const int64_t width = whole_pieces(cells, g.cells, b.width);
    C mean[BLOCK] = {}, above[BLOCK] = {}, below[BLOCK] = {}, there[BLOCK] = {};
    count_cells(g, b, below);
    for (int64_t k = 0; k < g.cells; ++k)
      for (int64_t i = 0; i < width; ++i) mean[i] += cells[k * BLOCK + i];
    for (int64_t i = 0; i < width; ++i) mean[i] /= below[i], below[i] = 0;
    if (job.weighting == Weighting::INVERSE_DISTANCE) {
      for_taps(g, b, there, [&](int64_t k) __attribute__((always_inline)) {
        const C* cell = cells + k * BLOCK;
        for (int64_t i = 0; i < width; ++i) {
          const C offset = cell[i] - mean[i], side = offset > 0 ? C(1) : offset < 0 ? C(-1) : offset;
          above[i] += there[i] == 0 ? C(0) : side;
          // Infinite where the cell is the mean, which leaves the mean as it is.
          below[i] += there[i] == 0 ? C(0) : 1 / magnitude(offset);
        }
      });
      for (int64_t i = 0; i < b.width; ++i) y[i] = narrow<T>(mean[i] + above[i] / below[i]);
      return;
    }
    for_taps(g, b, there, [&](int64_t k) __attribute__((always_inline)) {
      const C* cell = cells + k * BLOCK;
      for (int64_t i = 0; i < width; ++i) {
        const C weight = exponential(similarity(cell[i], mean[i], with_sign)).value;
        above[i] += there[i] == 0 ? C(0) : weight * cell[i];
        below[i] += there[i] == 0 ? C(0) : weight;
      }
    });
    for (int64_t i = 0; i < b.width; ++i) y[i] = narrow<T>(above[i] / below[i]);
  });
}

POOL_FOR_EACH_ELEMENT(rows, Job)

struct MeanSimilarityPool final : Kernel {
  Window window;
  Weighting weighting;

  explicit MeanSimilarityPool(const Attributes& attributes) : window(attributes) {
    const std::string name = attributes.get<std::string>("weighting", "dice");
    if (name != "dice" && name != "signed_dice" && name != "inverse_distance")
      refuse("weighting must be dice, signed_dice or inverse_distance, not %.40s", name.c_str());
    weighting = name == "dice"          ? Weighting::DICE
                : name == "signed_dice" ? Weighting::SIGNED_DICE
                                        : Weighting::INVERSE_DISTANCE;
  }

  std::vector<Shape> shapes(const std::vector<Tensor>& inputs) const override {
    return {window.output_shape(inputs[0].shape)};
  }

  void compute(Call& call) const override {
    with_element(call.inputs[0].type, [&](auto element) {
      using T = decltype(element);
      const Geometry g(window, call.inputs[0].shape);
      for_rows<computed<T>>(call, g.rows(), size_t(g.cells * BLOCK), [&](size_t first, size_t last, auto* scratch) {
        rows({g, call.inputs[0].as<T>(), weighting, call.output<T>(), scratch}, first, last);
      });
    });
  }
};

}  // namespace

extern const Operator mean_similarity_pool{"MeanSimilarityPool", {Type::SAME}, {Type::SAME}, create<MeanSimilarityPool>};

}  // namespace poolexport
