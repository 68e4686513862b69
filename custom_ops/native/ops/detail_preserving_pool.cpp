// DetailPreservingPool: the mean of every window, weighted by how far each cell lies from a centre of the window.
#include <cmath>

#include "core/float_power.h"
#include "core/inputs.h"
#include "core/window.h"

namespace poolexport {
namespace {

enum class Divisor { NONE, SUM, MEAN };

template <class T>
struct Job {
  Geometry g;
  const T* x;
  const double *exponent, *log_bias, *centre;  // without a centre it is the mean
  int64_t exponents, biases;                   // one, or one for each channel
  int64_t channels;
  double epsilon;
  bool above_only;
  Divisor divisor;
  T* y;
  double* scratch;

  double power_of(int64_t plane) const { return exponent[exponents == 1 ? 0 : plane % channels]; }
  double log_bias_of(int64_t plane) const { return log_bias[biases == 1 ? 0 : plane % channels]; }
};

//: The smallest normal number.
constexpr double SMALLEST = 0x1p-1022;

// At least 1 and at most x: a power of two, so that dividing by it rounds nothing.
POOL_INLINE double power_below(double x) {
  return bits_as<double>(bits_as<uint64_t>(x > 1 ? x : 1.0) & 0x7ff0000000000000ULL);
}

// The windows of a block in double, whatever their range.
template <class T>
POOL_INLINE void careful(const Job<T>& job, const Block& b, T* y) {
  const Geometry& g = job.g;
  double *const cells = job.scratch, *const scores = cells + g.cells * BLOCK;
  gather(g, b, job.x + b.plane * g.plane_size(), 0.0, cells);
  const double power = job.power_of(b.plane), log_bias = job.log_bias_of(b.plane);
  double middle[BLOCK], unit[BLOCK], floor[BLOCK], divisor[BLOCK], bias[BLOCK], largest[BLOCK], below[BLOCK];
  double above[BLOCK];
  for (int64_t i = 0; i < b.width; ++i) middle[i] = 0, unit[i] = 1, divisor[i] = 0;
  if (job.centre == nullptr) {
    for (int64_t k = 0; k < g.cells; ++k)
      for (int64_t i = 0; i < b.width; ++i) middle[i] += cells[k * BLOCK + i];
    for (int64_t i = 0; i < b.width; ++i) middle[i] /= double(g.cells);
  } else {
    for (int64_t i = 0; i < b.width; ++i) middle[i] = job.centre[y - job.y + i];
  }
  for (int64_t k = 0; k < g.cells; ++k) {
    const double* cell = cells + k * BLOCK;
    double* score = scores + k * BLOCK;
    for (int64_t i = 0; i < b.width; ++i) {
      const double difference = cell[i] - middle[i];
      score[i] = job.above_only && difference < 0 ? 0.0 : difference;
      const double distance = score[i] < 0 ? -score[i] : score[i];
      unit[i] = distance > unit[i] ? distance : unit[i];
    }
  }
  for (int64_t i = 0; i < b.width; ++i) {
    const double scale = power_below(unit[i]);
    bias[i] = job.divisor == Divisor::NONE ? log_bias - 2 * power * log_of_normal(scale) : log_bias;
    unit[i] = 1 / scale;
    floor[i] = job.epsilon * unit[i] * unit[i];
    largest[i] = bias[i];
  }
  for (int64_t k = 0; k < g.cells; ++k) {
    double* score = scores + k * BLOCK;
    for (int64_t i = 0; i < b.width; ++i) {
      const double ratio = score[i] * unit[i], square = ratio * ratio + floor[i];
      score[i] = square < SMALLEST ? SMALLEST : square;
      divisor[i] += score[i];
    }
  }
  const double share = job.divisor == Divisor::MEAN ? double(g.cells) : 1.0;
  for (int64_t i = 0; i < b.width; ++i) divisor[i] = job.divisor == Divisor::NONE ? 1.0 : share / divisor[i];
  for (int64_t k = 0; k < g.cells; ++k) {
    double* score = scores + k * BLOCK;
    for (int64_t i = 0; i < b.width; ++i) {
      score[i] = power * log_of_normal(score[i] * divisor[i]);
      largest[i] = score[i] > largest[i] ? score[i] : largest[i];
    }
  }
  for (int64_t i = 0; i < b.width; ++i) bias[i] = exponential(bias[i] - largest[i]).value, below[i] = above[i] = 0;
  for (int64_t k = 0; k < g.cells; ++k) {
    double* score = scores + k * BLOCK;
    for (int64_t i = 0; i < b.width; ++i) {
      score[i] = exponential(score[i] - largest[i]).value + bias[i];
      below[i] += score[i];
    }
  }
  for (int64_t i = 0; i < b.width; ++i) below[i] = 1 / below[i];
  for (int64_t k = 0; k < g.cells; ++k) {
    const double *score = scores + k * BLOCK, *cell = cells + k * BLOCK;
    for (int64_t i = 0; i < b.width; ++i) above[i] += score[i] * below[i] * cell[i];
  }
  for (int64_t i = 0; i < b.width; ++i) y[i] = narrow<T>(computed<T>(above[i]));
}

//: Steeper weights would magnify what float rounds, and sums of more cells would add up to more of it.
constexpr double STEEP = 8;
constexpr int64_t FEW = 64;

// What the weights of a plane share.
struct Plane {
  FloatPower power;
  float bias;
  bool usable;

  Plane(double exponent, double log_bias)
      : power(exponent), bias(float(std::exp(log_bias))), usable(exponent >= 0 && exponent <= STEEP) {}
};

// The windows of a block in float. False where the range of one does not allow it: nothing is written then.
template <class T>
POOL_INLINE bool quick(const Job<T>& job, const Plane& plane, const Block& b, T* y) {
  const Geometry& g = job.g;
  float *const cells = reinterpret_cast<float*>(job.scratch), *const weights = cells + g.cells * BLOCK;
  gather(g, b, job.x + b.plane * g.plane_size(), 0.0f, cells);
  const int64_t width = whole_pieces(cells, g.cells, b.width);
  const float share = 1 / float(g.cells), epsilon = float(job.epsilon), infinity = __builtin_inff();
  const float floor = job.above_only ? 0.0f : -infinity;
  // The centre is middle + rest.
  float middle[BLOCK] = {}, rest[BLOCK] = {}, sum[BLOCK] = {}, below[BLOCK] = {}, above[BLOCK] = {};
  if (job.centre == nullptr) {
    for (int64_t k = 0; k < g.cells; ++k)
      for (int64_t i = 0; i < width; ++i) middle[i] += cells[k * BLOCK + i];
    for (int64_t i = 0; i < width; ++i) middle[i] *= share;
    for (int64_t k = 0; k < g.cells; ++k)
      for (int64_t i = 0; i < width; ++i) rest[i] += cells[k * BLOCK + i] - middle[i];
    for (int64_t i = 0; i < width; ++i) rest[i] *= share;
  } else {
    const double* const centre = job.centre + (y - job.y);
    for (int64_t i = 0; i < b.width; ++i) middle[i] = float(centre[i]), rest[i] = float(centre[i] - double(middle[i]));
  }
  uint32_t farthest = 0;
  for (int64_t k = 0; k < g.cells; ++k) {
    const float* cell = cells + k * BLOCK;
    float* weight = weights + k * BLOCK;
    for (int64_t i = 0; i < width; ++i) {
      const float difference = (cell[i] - middle[i]) - rest[i], distance = difference < floor ? floor : difference;
      const uint32_t size = bits_as<uint32_t>(distance) & 0x7fffffffu;
      farthest = size > farthest ? size : farthest;
      weight[i] = distance * distance + epsilon;
      sum[i] += weight[i];
    }
  }
  // NaN is farther than any distance.
  if (farthest > bits_as<uint32_t>(0x1p30f)) return false;
  for (int64_t i = 0; i < width; ++i)
    sum[i] = job.divisor == Divisor::NONE ? 1.0f : (job.divisor == Divisor::MEAN ? float(g.cells) : 1.0f) / sum[i];
  for (int64_t k = 0; k < g.cells; ++k) {
    float* weight = weights + k * BLOCK;
    for (int64_t i = 0; i < width; ++i) {
      weight[i] = plane.power.of_normal(weight[i] * sum[i]) + plane.bias;
      below[i] += weight[i];
    }
  }
  int unsound = 0;
  for (int64_t i = 0; i < width; ++i) unsound |= !(below[i] >= 0x1p-60f) | !(below[i] <= 0x1p60f);
  if (unsound) return false;
  for (int64_t i = 0; i < width; ++i) below[i] = 1 / below[i];
  for (int64_t k = 0; k < g.cells; ++k)
    for (int64_t i = 0; i < width; ++i) above[i] += weights[k * BLOCK + i] * below[i] * cells[k * BLOCK + i];
  for (int64_t i = 0; i < b.width; ++i) y[i] = narrow<T>(above[i]);
  return true;
}

template <class T>
POOL_INLINE void rows_of(const Job<T>& job, size_t first, size_t last) {
  [[maybe_unused]] const bool usual = job.epsilon >= 0x1p-40 && job.epsilon <= 0x1p60 && job.g.cells <= FEW;
  [[maybe_unused]] int64_t known = -1;
  [[maybe_unused]] Plane plane(0, 0);
  for_blocks(job.g, job.y, int64_t(first), int64_t(last), [&](const Block& b, T* y) __attribute__((always_inline)) {
    if constexpr (sizeof(computed<T>) == 4) {
      if (b.plane != known) plane = Plane(job.power_of(b.plane), job.log_bias_of(b.plane)), known = b.plane;
      if (usual && plane.usable && quick(job, plane, b, y)) return;
    }
    careful(job, b, y);
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
    require_per_channel(y, inputs[1].shape, "exponent");
    require_per_channel(y, inputs[2].shape, "log_bias");
    require_one(inputs[3].shape, "epsilon");
    if (inputs.size() > 4) require_shape(y, inputs[4].shape, "centre");
    return {y};
  }

  void compute(Call& call) const override {
    with_element(call.inputs[0].type, [&](auto element) {
      using T = decltype(element);
      const std::vector<Tensor>& in = call.inputs;
      const Geometry g(window, in[0].shape);
      for_rows<double>(call, g.rows(), size_t(2 * g.cells * BLOCK), [&](size_t first, size_t last, double* scratch) {
        rows({g, in[0].as<T>(), in[1].as<double>(), in[2].as<double>(), in.size() > 4 ? in[4].as<double>() : nullptr,
              int64_t(count(in[1].shape)), int64_t(count(in[2].shape)), in[0].shape[1], *in[3].as<double>(),
              above_only, divisor, call.output<T>(), scratch},
             first, last);
      });
    });
  }
};

}  // namespace

extern const Operator detail_preserving_pool{
    "DetailPreservingPool",
    {Type::SAME, Type::DOUBLE, Type::DOUBLE, Type::DOUBLE, Type::DOUBLE},
    {Type::SAME},
    create<DetailPreservingPool>,
    1};

}  // namespace poolexport
