// FractionalMaxPoolWithIndices: the largest cell of every fractional region, and where it is.
#include "core/fractional.h"

namespace poolexport {
namespace {

struct FractionalMaxPoolWithIndices final : Kernel {
  Fractional rule;

  explicit FractionalMaxPoolWithIndices(const Attributes& attributes) : rule(attributes) {}

  std::vector<Shape> shapes(const std::vector<Tensor>& inputs) const override {
    return std::vector<Shape>(2, rule.output_shape(inputs[0], inputs[1]));
  }

  void compute(Call& call) const override { first_largest_of_regions(call, rule.regions(call.inputs[0], call.inputs[1])); }
};

}  // namespace

extern const Operator fractional_max_pool_with_indices{"FractionalMaxPoolWithIndices", {Type::SAME, Type::DOUBLE}, {Type::SAME, Type::INT64}, create<FractionalMaxPoolWithIndices>};

}  // namespace poolexport
