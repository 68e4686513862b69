// SecondMomentPower: a power of every sample's second-moment matrix.
#include "core/number.h"
#include "core/subspace.h"

namespace poolexport {
namespace {

struct SecondMomentPower final : Kernel {
  double alpha, epsilon, spacing;
  Layout layout;

  explicit SecondMomentPower(const Attributes& attributes)
      : alpha(number(attributes, "alpha")), epsilon(number(attributes, "epsilon")), layout(layout_of(attributes)) {
    const std::string precision = attributes.get<std::string>("precision");
    if (precision != "float32" && precision != "float64")
      refuse("precision is '%s', and must be float32 or float64", precision.c_str());
    // The distance from 1 to the next number.
    spacing = precision == "float32" ? 0x1p-23 : 0x1p-52;
  }

  std::vector<Shape> shapes(const std::vector<Tensor>& inputs) const override {
    require_sequences(inputs[0].shape);
    return {packed_shape(inputs[0].shape, layout)};
  }

  void compute(Call& call) const override {
    for_samples(call, [&](const Samples& s) {
      std::vector<double> weights(size_t(s.number * s.n)), factors(size_t(s.number));
      for (int64_t sample = 0; sample < s.number; ++sample) {
        const double* const squares = s.squares + sample * s.n;
        double largest = 0;
        for (int64_t i = 0; i < s.n; ++i) largest = std::max(largest, squares[i] / double(s.m));
        const double floor = spacing * power_of_two(largest), scale = s.scales[sample] * s.scales[sample];
        for (int64_t i = 0; i < s.n; ++i) {
          const double value = squares[i] / double(s.m);
          weights[size_t(sample * s.n + i)] = value > floor ? std::pow(value + epsilon / scale, alpha) : 0;
        }
        factors[size_t(sample)] = std::pow(scale, alpha);
      }
      with_element(call.inputs[0].type, [&](auto element) {
        write_outers(call, s, weights.data(), factors.data(), layout, call.output<decltype(element)>());
      });
    });
  }
};

}  // namespace

extern const Operator second_moment_power{"SecondMomentPower", {Type::SAME}, {Type::SAME}, create<SecondMomentPower>};

}  // namespace poolexport
