// AdaptiveMaxPoolWithIndices: the largest cell of every bin, and where it is.
#include "core/bins.h"

namespace poolexport {
namespace {

struct AdaptiveMaxPoolWithIndices final : Kernel {
  Bins bins;

  explicit AdaptiveMaxPoolWithIndices(const Attributes& attributes) : bins(attributes) {}

  std::vector<Shape> shapes(const std::vector<Tensor>& inputs) const override {
    return std::vector<Shape>(2, bins.output_shape(inputs[0].shape));
  }

  void compute(Call& call) const override { first_largest_of_regions(call, bins.regions(call.inputs[0].shape)); }
};

}  // namespace

extern const Operator adaptive_max_pool_with_indices{"AdaptiveMaxPoolWithIndices", {Type::SAME}, {Type::SAME, Type::INT64}, create<AdaptiveMaxPoolWithIndices>};

}  // namespace poolexport
