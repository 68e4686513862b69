// Gram: the products of all pairs of channels, summed over the locations, in float64.
#include "core/gemm.h"

namespace poolexport {
namespace {

struct Gram final : Kernel {
  explicit Gram(const Attributes&) {}

  std::vector<Shape> shapes(const std::vector<Tensor>& inputs) const override {
    const Shape &a = inputs[0].shape, &b = inputs[1].shape;
    if (a.size() != 3 || b.size() != 3)
      refuse("inputs of shape (N, C, M) and (N, D, M) are needed, and not %s and %s", spelled(a).c_str(),
             spelled(b).c_str());
    for (size_t axis : {0, 2})
      if (a[axis] != b[axis] && a[axis] != UNKNOWN && b[axis] != UNKNOWN)
        refuse("both inputs need the same samples and locations, and not the shapes %s and %s", spelled(a).c_str(),
               spelled(b).c_str());
    return {{a[0], a[1], b[1]}};
  }

  void compute(Call& call) const override {
    const Shape &a = call.inputs[0].shape, &b = call.inputs[1].shape;
    with_element(call.inputs[0].type, [&](auto element) {
      using T = decltype(element);
      const T *left = call.inputs[0].as<T>(), *right = call.inputs[1].as<T>();
      const bool same = left == right && a[1] == b[1];
      multiply<double>(call, Product<T>{a[0], a[1], b[1], a[2], dense(left, a[1], a[2]),
                                        dense(right, b[1], b[2]).turned(), call.output<T>(), same});
    });
  }
};

}  // namespace

extern const Operator gram{"Gram", {Type::SAME, Type::SAME}, {Type::SAME}, create<Gram>};

}  // namespace poolexport
