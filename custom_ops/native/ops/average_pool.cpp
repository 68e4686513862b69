// AveragePool: the mean of every window, with the divisor spelled out.
#include "core/mean_window.h"

namespace poolexport {
namespace {

struct AveragePool final : Kernel {
  Mean mean;

  explicit AveragePool(const Attributes& attributes)
      : mean{Window(attributes), attributes.get<Shape>("counted_pads"),
             attributes.get<int64_t>("divisor_override", 0), false} {
    const Window& window = mean.window;
    const size_t rank = window.rank();
    if (mean.counted.size() != 2 * rank) refuse("counted_pads needs %zu entries", 2 * rank);
    for (size_t i = 0; i < 2 * rank; ++i)
      if (mean.counted[i] < 0 || mean.counted[i] > (i < rank ? window.begin[i] : window.end[i - rank]))
        refuse("counted_pads %s must be between 0 and the pads", spelled(mean.counted).c_str());
  }

  std::vector<Shape> shapes(const std::vector<Tensor>& inputs) const override {
    return {mean.window.output_shape(inputs[0].shape)};
  }

  void compute(Call& call) const override { mean_windows(call, mean); }
};

}  // namespace

extern const Operator average_pool{"AveragePool", {Type::SAME}, {Type::SAME}, create<AveragePool>};

}  // namespace poolexport
