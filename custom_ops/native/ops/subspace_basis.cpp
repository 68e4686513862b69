// SubspaceBasis: the k leading left singular vectors of every sample, with signs.
#include "core/leading.h"

namespace poolexport {
namespace {

//: Magnitudes above this share of the largest are as large, whatever rounding says.
constexpr double NEARLY = 1 - 1e-6;

// The factor that makes the first of a vector's largest entries positive.
double sign_of(const double* vector, int64_t count) {
  double largest = 0;
  for (int64_t i = 0; i < count; ++i) largest = std::max(largest, std::fabs(vector[i]));
  for (int64_t i = 0; i < count; ++i)
    if (std::fabs(vector[i]) >= NEARLY * largest) return vector[i] < 0 ? -1 : 1;
  return 1;
}

struct SubspaceBasis final : Kernel {
  int64_t k;

  explicit SubspaceBasis(const Attributes& attributes) : k(directions_of(attributes)) {}

  std::vector<Shape> shapes(const std::vector<Tensor>& inputs) const override {
    const Shape& x = inputs[0].shape;
    require_sequences(x);
    if (x[1] != UNKNOWN && x[1] < k)
      refuse("k is %lld, but the input has only %lld channels; use a smaller k", static_cast<long long>(k),
             static_cast<long long>(x[1]));
    return {{x[0], x[1], k}};
  }

  void compute(Call& call) const override {
    for_samples(call, [&](const Samples& s) {
      with_element(call.inputs[0].type, [&](auto element) {
        using T = decltype(element);
        for (int64_t sample = 0; sample < s.number; ++sample) {
          T* const y = call.output<T>() + s.place(sample) * s.c * k;
          const computed<T> nothing = s.spoilt[sample] ? __builtin_nanf("") : 0;
          std::fill(y, y + s.c * k, narrow<T>(nothing));
          int64_t column = 0;
          for (int64_t i : s.spoilt[sample] ? Shape{} : leading(s, sample, k)) {
            const double* const vector = s.vectors + (sample * s.n + i) * s.c;
            const double sign = sign_of(vector, s.c);
            for (int64_t j = 0; j < s.c; ++j) y[j * k + column] = narrow<T>(computed<T>(sign * vector[j]));
            ++column;
          }
        }
      });
    });
  }
};

}  // namespace

extern const Operator subspace_basis{"SubspaceBasis", {Type::SAME}, {Type::SAME}, create<SubspaceBasis>};

}  // namespace poolexport
