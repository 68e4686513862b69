// SubspaceProjection: the projection onto the span of the k leading left singular vectors of every sample.
#include "core/leading.h"

namespace poolexport {
namespace {

struct SubspaceProjection final : Kernel {
  int64_t k;
  Layout layout;

  explicit SubspaceProjection(const Attributes& attributes)
      : k(directions_of(attributes)), layout(layout_of(attributes)) {}

  std::vector<Shape> shapes(const std::vector<Tensor>& inputs) const override {
    require_sequences(inputs[0].shape);
    return {packed_shape(inputs[0].shape, layout)};
  }

  void compute(Call& call) const override {
    for_samples(call, [&](const Samples& s) {
      std::vector<double> weights(size_t(s.number * s.n), 0.0);
      const std::vector<double> factors(size_t(s.number), 1.0);
      for (int64_t sample = 0; sample < s.number; ++sample)
        for (int64_t i : leading(s, sample, k)) weights[size_t(sample * s.n + i)] = 1;
      with_element(call.inputs[0].type, [&](auto element) {
        write_outers(call, s, weights.data(), factors.data(), layout, call.output<decltype(element)>());
      });
    });
  }
};

}  // namespace

extern const Operator subspace_projection{"SubspaceProjection", {Type::SAME}, {Type::SAME}, create<SubspaceProjection>};

}  // namespace poolexport
