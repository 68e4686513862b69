// FractionalMaxPool: the largest cell of every fractional region.
#include "core/fractional.h"

namespace poolexport {
namespace {

struct FractionalMaxPool final : Kernel {
  Fractional rule;

  explicit FractionalMaxPool(const Attributes& attributes) : rule(attributes) {}

  std::vector<Shape> shapes(const std::vector<Tensor>& inputs) const override {
    return {rule.output_shape(inputs[0], inputs[1])};
  }

  void compute(Call& call) const override { largest_of_regions(call, rule.regions(call.inputs[0], call.inputs[1])); }
};

}  // namespace

extern const Operator fractional_max_pool{"FractionalMaxPool", {Type::SAME, Type::DOUBLE}, {Type::SAME}, create<FractionalMaxPool>};

}  // namespace poolexport
