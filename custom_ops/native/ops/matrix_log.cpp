// MatrixLog: the logarithm of S + a I by the eigenvalues of S / a, in float64 whatever comes in: entries far below a
// keep their digits.
#include <cmath>

#include "core/eigen.h"
#include "core/gemm.h"
#include "core/spread.h"
#include "core/square.h"

namespace poolexport {
namespace {

//: Bytes of one of four buffers, if it holds more than one matrix.
constexpr int64_t ROOM = int64_t{1} << 24;

// The lower triangle of s / a, and a; no number where the matrix has no logarithm, and zeros in its place.
template <class T>
double quotient(const T* s, int64_t d, T epsilon, double* to) {
  using C = computed<T>;
  // The share of the trace below which an eigenvalue is not told from 0.
  constexpr C floor = sizeof(C) == 8 ? C(0x1p-44) : C(0x1p-23);
  C trace = 0;
  for (int64_t i = 0; i < d; ++i) trace += widen(s[i * d + i]);
  const C least = floor * trace, given = widen(epsilon), a = given > least || given != given ? given : least;
  bool usable = a > 0 && std::isfinite(a);
  for (int64_t i = 0; i < d; ++i)
    for (int64_t j = 0; j < d; ++j) {
      const C value = widen(s[i * d + j]);
      usable = usable && std::isfinite(i == j ? value + a : value);
      to[i * d + j] = double(value) / double(a);
      usable = usable && std::isfinite(to[i * d + j]);
    }
  if (!usable) std::fill(to, to + d * d, 0.0);
  return usable ? double(a) : std::nan("");
}

struct MatrixLog final : Kernel {
  explicit MatrixLog(const Attributes&) {}

  std::vector<Shape> shapes(const std::vector<Tensor>& inputs) const override {
    require_square(inputs[0].shape);
    const Shape& epsilon = inputs[1].shape;
    if (epsilon.size() > 1 || (epsilon.size() == 1 && epsilon[0] != 1 && epsilon[0] != UNKNOWN))
      refuse("epsilon must be one number, and has the shape %s", spelled(epsilon).c_str());
    return {inputs[0].shape};
  }

  void compute(Call& call) const override {
    with_element(call.inputs[0].type, [&](auto element) {
      using T = decltype(element);
      const int64_t batch = call.inputs[0].shape[0], d = call.inputs[0].shape[1], size = d * d;
      const T epsilon = *call.inputs[1].as<T>();
      const int64_t chunk = std::clamp<int64_t>(ROOM / (size * 8), 1, batch);
      const std::unique_ptr<double[]> room(new double[size_t(3 * chunk * size)]);
      const std::unique_ptr<double[]> rows(new double[size_t(2 * chunk * d)]);
      double *const quotients = room.get(), *const vectors = quotients + chunk * size;
      double* const logs = vectors + chunk * size;
      double *const values = rows.get(), *const scales = values + chunk * d;
      for (int64_t first = 0; first < batch; first += chunk) {
        const int64_t some = std::min(chunk, batch - first);
        spread(call, some, [&](int64_t i, int64_t) {
          scales[i] = quotient(call.inputs[0].as<T>() + (first + i) * size, d, epsilon, quotients + i * size);
        });
        eigen(call, some, d, quotients, values, vectors);
        // What eigen leaves of the quotients is of no use: weighted vectors take their place. Values below 0 are
        // rounding.
        spread(call, some * d, [&](int64_t row, int64_t) {
          const double weight = std::log1p(std::max(values[row], 0.0));
          for (int64_t j = 0; j < d; ++j) quotients[row * d + j] = weight * vectors[row * d + j];
        });
        const View<double> left = dense<double>(quotients, d, d).turned(), right = dense<double>(vectors, d, d);
        multiply<double>(call, Product<double>{some, d, d, d, left, right, logs, true});
        spread(call, some * d, [&](int64_t row, int64_t) {
          const double scale = scales[row / d], shift = std::isnan(scale) ? scale : 0.0;
          T* const to = call.output<T>() + (first * d + row) * d;
          for (int64_t j = 0; j < d; ++j)
            to[j] = narrow<T>(computed<T>(logs[row * d + j] + (j == row % d ? std::log(scale) : shift)));
        });
      }
    });
  }
};

}  // namespace

extern const Operator matrix_log{"MatrixLog", {Type::SAME, Type::SAME}, {Type::SAME}, create<MatrixLog>};

}  // namespace poolexport
