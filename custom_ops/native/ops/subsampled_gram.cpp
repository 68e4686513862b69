// SubsampledGram: Gram of two maps of different sizes, of which the larger is read at evenly spaced cells.
#include "core/gemm.h"
#include "core/spread.h"

namespace poolexport {
namespace {

// Where `count` of `length` cells are, halves rounded upwards; the last cell for a single one.
Shape positions(int64_t length, int64_t count) {
  if (length == 0) refuse("a map without cells cannot be read at %lld places", static_cast<long long>(count));
  Shape places(static_cast<size_t>(count), length - 1);
  for (int64_t i = 0; i < count && count > 1; ++i)
    places[size_t(i)] = (2 * (length - 1) * i + count - 1) / (2 * (count - 1));
  return places;
}

// The cells of (N, C, H, W) at some rows and columns, as (N, C, cells).
template <class T>
std::unique_ptr<T[]> picked(const Call& call, const Tensor& x, const Shape& target) {
  if (target[0] == 0 || target[1] == 0) return nullptr;
  const Shape rows = positions(x.shape[2], target[0]), columns = positions(x.shape[3], target[1]);
  const int64_t planes = x.shape[0] * x.shape[1], size = x.shape[2] * x.shape[3], cells = target[0] * target[1];
  std::unique_ptr<T[]> flat(new T[size_t(planes * cells)]);
  spread(call, planes, [&](int64_t plane, int64_t) {
    T* to = flat.get() + plane * cells;
    for (int64_t row : rows) {
      const T* line = x.as<T>() + plane * size + row * x.shape[3];
      for (int64_t column : columns) *to++ = line[column];
    }
  });
  return flat;
}

struct SubsampledGram final : Kernel {
  explicit SubsampledGram(const Attributes&) {}

  std::vector<Shape> shapes(const std::vector<Tensor>& inputs) const override {
    const Shape &a = inputs[0].shape, &b = inputs[1].shape;
    if (a.size() != 4 || b.size() != 4 || (a[0] != b[0] && a[0] != UNKNOWN && b[0] != UNKNOWN))
      refuse("inputs of shape (N, C, H, W) and (N, D, H', W') are needed, and not %s and %s", spelled(a).c_str(),
             spelled(b).c_str());
    return {{a[0], a[1], b[1]}};
  }

  void compute(Call& call) const override {
    with_element(call.inputs[0].type, [&](auto element) {
      using T = decltype(element);
      const Tensor &a = call.inputs[0], &b = call.inputs[1];
      const Shape& smaller = a.shape[2] * a.shape[3] <= b.shape[2] * b.shape[3] ? a.shape : b.shape;
      const Shape target(smaller.begin() + 2, smaller.end());
      const int64_t cells = target[0] * target[1];
      const auto left = picked<T>(call, a, target), right = picked<T>(call, b, target);
      multiply<double>(call, Product<T>{a.shape[0], a.shape[1], b.shape[1], cells, dense(left.get(), a.shape[1], cells),
                                        dense(right.get(), b.shape[1], cells).turned(), call.output<T>()});
    });
  }
};

}  // namespace

extern const Operator subsampled_gram{"SubsampledGram", {Type::SAME, Type::SAME}, {Type::SAME}, create<SubsampledGram>};

}  // namespace poolexport
