// PowerAveragePool: the p-norm of every window.
#include <cmath>
#include <limits>

#include "core/coverage.h"
#include "core/float_power.h"
#include "core/fold.h"
#include "core/number.h"
#include "core/scale.h"

namespace poolexport {
namespace {

// How powers are taken. Sums of odd powers with signs may cancel, and so magnify what a quick power loses.
enum class Mode { LARGEST, ONE, TWO, THREE, ANY, ODD };

struct Norm {
  double p;
  bool is_signed, odd;
  double real;  // of negative numbers up to this one powers are real, by convention that of -infinity; NaN for none
  FloatPower power, root;
  double smallest, largest;  // sums whose quick root is a normal number

  Norm(double order, bool of_signed)
      : p(order),
        is_signed(of_signed),
        odd(std::fabs(std::fmod(order, 2)) == 1),
        real(!of_signed || std::trunc(order) == order ? 0
             : std::fabs(order) == 0.5                ? __builtin_nan("")
                                                      : -__builtin_inf()),
        power(order),
        root(1 / order),
        smallest(std::exp2(-125 * std::fabs(order))),
        largest(std::exp2(125 * std::fabs(order))) {}

  bool cancels() const { return is_signed && odd; }

  Mode mode() const {
    return std::isinf(p) ? Mode::LARGEST
           : p == 1      ? Mode::ONE
           : p == 2      ? Mode::TWO
           : p == 3      ? Mode::THREE
           : cancels()   ? Mode::ODD
                         : Mode::ANY;
  }
};

template <class T>
struct Job {
  Geometry g;
  Tiling tiling;
  Norm norm;
  Coverage coverage;
  bool padded;
  const T* x;
  T* y;
};

POOL_INLINE float absolute(float x) { return __builtin_fabsf(x); }
POOL_INLINE double absolute(double x) { return __builtin_fabs(x); }

// x^p for x >= 0. Powers of float are made in double and rounded once.
POOL_INLINE float power(float x, double p) { return float(exp(p * log(double(x)))); }
inline double power(double x, double p) { return std::pow(x, p); }

POOL_INLINE float quick_power(float x, const FloatPower& power, double) { return power(x); }
inline double quick_power(double x, const FloatPower&, double p) { return std::pow(x, p); }

POOL_INLINE float square_root(float x) { return __builtin_sqrtf(x); }
POOL_INLINE double square_root(double x) { return __builtin_sqrt(x); }

// The cube root of x > 0 by steps of third order towards x^(-1/3), and a last one that makes up for their rounding.
POOL_INLINE float cube_root(float x) {
  float r = bits_as<float>(0x54a2fa8cu - bits_as<uint32_t>(x) / 3);
#pragma GCC unroll 2
  for (int step = 0; step < 2; ++step) {
    const float h = 1 - x * r * r * r;
    r += r * h * (1 / 3.0f + 2 / 9.0f * h);
  }
  const float y = x * r * r;
  return y + (x - y * y * y) * (r * r) * (1 / 3.0f);
}
inline double cube_root(double x) { return std::cbrt(x); }

template <Mode MODE, class C>
POOL_INLINE C cell_power(const Norm& norm, C x) {
  const C magnitude = absolute(x), base = norm.is_signed ? x : magnitude;
  if constexpr (MODE == Mode::LARGEST) return norm.p > 0 ? magnitude : -magnitude;
  if constexpr (MODE == Mode::ONE) return base;
  if constexpr (MODE == Mode::TWO) return x * x;
  if constexpr (MODE == Mode::THREE) return x * x * base;
  if constexpr (MODE == Mode::ODD) return power(magnitude, norm.p) * (base < 0 ? C(-1) : C(1));
  const C result = quick_power(magnitude, norm.power, norm.p);
  return (x < 0) & !(x <= C(norm.real)) ? C(__builtin_nan("")) : result;
}

template <Mode MODE, class C>
POOL_INLINE C root_of(const Norm& norm, C sum) {
  if constexpr (MODE == Mode::LARGEST) return norm.p > 0 ? sum : -sum;
  if constexpr (MODE == Mode::ONE) return sum;
  if constexpr (MODE == Mode::TWO) return square_root(sum);
  if constexpr (MODE == Mode::ANY) return quick_power(sum, norm.root, 1 / norm.p);
  const C nan = C(__builtin_nan(""));
  if constexpr (MODE == Mode::THREE) return sum > 0 ? cube_root(sum) : sum < 0 ? nan : sum;
  // Of a negative sum only the power -1 is real.
  const C root = power(absolute(sum), 1 / norm.p);
  return sum < 0 ? (norm.p == -1 ? -root : nan) : root;
}

// Sums within these bounds have lost nothing that counts, and overflow nowhere.
template <class C>
constexpr C SMALLEST = sizeof(C) == 4 ? C(0x1p-80) : C(0x1p-700);
template <class C>
constexpr C LARGEST = sizeof(C) == 4 ? C(0x1p120) : C(0x1p1000);
//: Above this order only a window whose dominant power is exactly 1 stays in range.
constexpr double STEEP = 64;

// The norm of window i by its definition, whatever the range of its cells.
template <class T>
double careful(const Job<T>& job, const Block& b, int64_t i, double share) {
  const Geometry& g = job.g;
  const double p = job.norm.p, sign = p > 0 ? 1 : -1;
  const T* plane = job.x + b.plane * g.plane_size();
  const auto each = [&](auto&& body) {
    for_lines(g, b, [&](bool there, int64_t offset) {
      for (int64_t kw = 0; there && kw < g.kernel[2]; ++kw) {
        const int64_t w = (b.column + i) * g.stride[2] - g.begin[2] + kw * g.dilation[2];
        if (w >= 0 && w < g.length[2]) body(double(widen(plane[offset + w])));
      }
    });
  };
  double dominant = -__builtin_inf();
  each([&](double x) { dominant = Larger{}(dominant, sign * std::fabs(x)); });
  dominant *= sign;
  double scale = 1;
  if (dominant > 0 && dominant < __builtin_inf() && std::fabs(p) > 0.5 && p != 1) {
    scale = std::fabs(p) > STEEP ? dominant : power_of_two(dominant);
  }
  double sum = 0;
  each([&](double x) {
    const double cell = (job.norm.is_signed ? x : std::fabs(x)) / scale;
    sum += p == 0.5 ? std::sqrt(cell) : p == -0.5 ? 1 / std::sqrt(cell) : std::pow(cell, p);
  });
  sum *= share;
  return scale * std::pow(sum == 0 ? 0.0 : sum, 1 / p);  // the root of -0 is -inf
}

template <Mode MODE, class T>
POOL_INLINE void norms(const Job<T>& job, size_t first, size_t last) {
  using C = computed<T>;
  using Bits = std::conditional_t<sizeof(C) == 4, uint32_t, uint64_t>;
  const Geometry& g = job.g;
  const Norm norm = job.norm;
  const auto body = [&](const Tile& t, T* y) __attribute__((always_inline)) {
    const T* plane = job.x + t.plane * g.plane_size();
    C sums[TILE];
    const auto finish = [&]() __attribute__((always_inline)) {
      for_results(g, t, y, [&](int64_t from, T* to, int64_t count) __attribute__((always_inline)) {
        for (int64_t i = 0; i < count; ++i) to[i] = narrow<T>(root_of<MODE>(norm, sums[from + i]));
      });
    };
    if constexpr (MODE == Mode::LARGEST) {
      const auto value = [&](int64_t at) __attribute__((always_inline)) {
        return cell_power<MODE>(norm, C(widen(plane[at])));
      };
      fold(g, t, C(-__builtin_inf()), sums, value, Larger{});
      return finish();
    }
    // A sum of 0 is that of zeros, unless a cell is so small that its power is lost.
    Bits least = ~Bits{0};
    const auto value = [&](int64_t at) __attribute__((always_inline)) {
      const C x = widen(plane[at]);
      const Bits size = bits_as<Bits>(absolute(x)) - 1;
      least = size < least ? size : least;
      return cell_power<MODE>(norm, x);
    };
    fold(g, t, C(0), sums, value, Sum{});
    const C lowest = bits_as<C>(Bits(least + 1));
    const bool lost = least != ~Bits{0} && !(cell_power<MODE>(norm, lowest) >= SMALLEST<C>);
    const auto inside = [&](int64_t row, int64_t i) {
      return job.coverage.along(g, 0, t.depth) * job.coverage.along(g, 1, t.row + row) *
             job.coverage.along(g, 2, t.column + i);
    };
    const auto each = [&](auto&& body) __attribute__((always_inline)) {
      for (int64_t row = 0; row < t.rows; ++row)
        for (int64_t i = 0; i < t.width; ++i) body(row, i, sums[row * t.pitch + i]);
    };
    if (job.padded)
      each([&](int64_t row, int64_t i, C& sum) __attribute__((always_inline)) {
        if (inside(row, i) != g.cells) sum *= C(double(g.cells) / double(inside(row, i)));
      });
    // Where nothing cancels, a sum that is NaN is right.
    const bool zeros = !lost && norm.p > 0, nans = !norm.cancels();
    const bool quick = MODE == Mode::ANY && sizeof(C) == 4;
    const C smallest = quick && norm.smallest > SMALLEST<C> ? C(norm.smallest) : SMALLEST<C>;
    const C largest = quick && norm.largest < LARGEST<C> ? C(norm.largest) : LARGEST<C>;
    const auto sound = [&](C sum) __attribute__((always_inline)) {
      const C size = absolute(sum);
      return ((size >= smallest) & (size <= largest)) | ((size == 0) & zeros) | ((size != size) & nans);
    };
    int doubtful = 0;
    for (int64_t i = 0; i < (t.rows - 1) * t.pitch + t.width; ++i) doubtful |= !sound(sums[i]);
    finish();
    if (!doubtful) return;
    each([&](int64_t row, int64_t i, C& sum) {
      if (sound(sum)) return;
      const double share = double(g.cells) / double(inside(row, i));
      const Block b{t.plane, t.depth, t.row + row, t.column, t.width};
      y[row * g.output[2] + i] = narrow<T>(C(careful(job, b, i, share)));
    });
  };
  for_tiles(g, job.tiling, job.y, int64_t(first), int64_t(last), body);
}

#define POOL_MODE(name, MODE)                                            \
  template <class T>                                                     \
  POOL_INLINE void name##_of(const Job<T>& job, size_t first, size_t last) { \
    norms<MODE>(job, first, last);                                       \
  }                                                                      \
  POOL_FOR_EACH_ELEMENT(name, Job)

POOL_MODE(largest, Mode::LARGEST)
POOL_MODE(order_one, Mode::ONE)
POOL_MODE(order_two, Mode::TWO)
POOL_MODE(order_three, Mode::THREE)
POOL_MODE(any_order, Mode::ANY)
POOL_MODE(odd_order, Mode::ODD)

// A number, or an infinity.
double order_of(const Attributes& attributes) {
  const std::string text = attributes.get<std::string>("p");
  return text == "inf" ? __builtin_inf() : text == "-inf" ? -__builtin_inf() : number_of("p", text);
}

struct PowerAveragePool final : Kernel {
  Window window;
  Norm norm;

  explicit PowerAveragePool(const Attributes& attributes)
      : window(attributes), norm(order_of(attributes), attributes.get<int64_t>("signed", 0) != 0) {
    if (norm.p == 0) refuse("p must be a number other than 0");
  }

  std::vector<Shape> shapes(const std::vector<Tensor>& inputs) const override {
    return {window.output_shape(inputs[0].shape)};
  }

  void compute(Call& call) const override {
    with_element(call.inputs[0].type, [&](auto element) {
      using T = decltype(element);
      const Geometry g(window, call.inputs[0].shape);
      const Coverage coverage(g, Shape(2 * window.rank()));
      bool padded = false;
      for (size_t i = 0; i < window.rank(); ++i) padded = padded || window.begin[i] || window.end[i];
      const Job<T> job{g, Tiling(g, false), norm, coverage, padded, call.inputs[0].as<T>(), call.output<T>()};
      call.split(size_t(g.rows()), [&](size_t first, size_t last, size_t) {
        switch (norm.mode()) {
          case Mode::LARGEST: return largest(job, first, last);
          case Mode::ONE: return order_one(job, first, last);
          case Mode::TWO: return order_two(job, first, last);
          case Mode::THREE: return order_three(job, first, last);
          case Mode::ANY: return any_order(job, first, last);
          case Mode::ODD: return odd_order(job, first, last);
        }
      });
    });
  }
};

}  // namespace

extern const Operator power_average_pool{"PowerAveragePool", {Type::SAME}, {Type::SAME}, create<PowerAveragePool>};

}  // namespace poolexport
