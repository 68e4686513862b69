// AdaptiveMaxPool: the largest cell of every bin.
#include "core/bins.h"

namespace poolexport {
namespace {

struct AdaptiveMaxPool final : Kernel {
  Bins bins;

  explicit AdaptiveMaxPool(const Attributes& attributes) : bins(attributes) {}

  std::vector<Shape> shapes(const std::vector<Tensor>& inputs) const override {
    return {bins.output_shape(inputs[0].shape)};
  }

  void compute(Call& call) const override { largest_of_regions(call, bins.regions(call.inputs[0].shape)); }
};

}  // namespace

extern const Operator adaptive_max_pool{"AdaptiveMaxPool", {Type::SAME}, {Type::SAME}, create<AdaptiveMaxPool>};

}  // namespace poolexport
