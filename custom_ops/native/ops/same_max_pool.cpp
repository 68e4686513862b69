// SameMaxPool: the largest cell of every window, with "same" padding.
#include "core/max_window.h"
#include "core/same.h"

namespace poolexport {
namespace {

struct SameMaxPool final : Kernel {
  SameWindow window;

  explicit SameMaxPool(const Attributes& attributes) : window(attributes) {}

  std::vector<Shape> shapes(const std::vector<Tensor>& inputs) const override {
    return {window.output_shape(inputs[0].shape)};
  }

  void compute(Call& call) const override { max_windows(call, window.on(call.inputs[0].shape)); }
};

}  // namespace

extern const Operator same_max_pool{"SameMaxPool", {Type::SAME}, {Type::SAME}, create<SameMaxPool>};

}  // namespace poolexport
