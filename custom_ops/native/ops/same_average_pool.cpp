// SameAveragePool: the mean of every window, with "same" padding.
#include "core/mean_window.h"
#include "core/same.h"

namespace poolexport {
namespace {

struct SameAveragePool final : Kernel {
  SameWindow window;
  bool pads_count;

  explicit SameAveragePool(const Attributes& attributes)
      : window(attributes), pads_count(attributes.get<int64_t>("count_include_pad", 0) != 0) {}

  std::vector<Shape> shapes(const std::vector<Tensor>& inputs) const override {
    return {window.output_shape(inputs[0].shape)};
  }

  void compute(Call& call) const override {
    const Window padded = window.on(call.inputs[0].shape);
    mean_windows(call, {padded, Shape(2 * padded.rank()), pads_count ? padded.size() : 0, true});
  }
};

}  // namespace

extern const Operator same_average_pool{"SameAveragePool", {Type::SAME}, {Type::SAME}, create<SameAveragePool>};

}  // namespace poolexport
