// MaxPool: the largest cell of every window.
#include "core/max_window.h"

namespace poolexport {
namespace {

struct MaxPool final : Kernel {
  Window window;

  explicit MaxPool(const Attributes& attributes) : window(attributes) {}

  std::vector<Shape> shapes(const std::vector<Tensor>& inputs) const override {
    return {window.output_shape(inputs[0].shape)};
  }

  void compute(Call& call) const override { max_windows(call, window); }
};

}  // namespace

extern const Operator max_pool{"MaxPool", {Type::SAME}, {Type::SAME}, create<MaxPool>};

}  // namespace poolexport
