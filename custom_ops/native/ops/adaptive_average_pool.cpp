// AdaptiveAveragePool: the mean of every bin.
#include "core/bins.h"

namespace poolexport {
namespace {

struct AdaptiveAveragePool final : Kernel {
  Bins bins;

  explicit AdaptiveAveragePool(const Attributes& attributes) : bins(attributes) {}

  std::vector<Shape> shapes(const std::vector<Tensor>& inputs) const override {
    return {bins.output_shape(inputs[0].shape)};
  }

  void compute(Call& call) const override { means_of_regions(call, bins.regions(call.inputs[0].shape)); }
};

}  // namespace

extern const Operator adaptive_average_pool{"AdaptiveAveragePool", {Type::SAME}, {Type::SAME}, create<AdaptiveAveragePool>};

}  // namespace poolexport
