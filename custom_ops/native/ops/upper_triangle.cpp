// UpperTriangle: the entries on and above the diagonal of every matrix as a vector.
#include "core/spread.h"
#include "core/square.h"

namespace poolexport {
namespace {

struct UpperTriangle final : Kernel {
  std::string order;
  bool isometric;

  explicit UpperTriangle(const Attributes& attributes)
      : order(attributes.get<std::string>("order")), isometric(attributes.get<int64_t>("isometric", 0) != 0) {
    if (order != "row" && order != "column" && order != "diagonal_first")
      refuse("order is '%s', and must be row, column or diagonal_first", order.c_str());
  }

  std::vector<Shape> shapes(const std::vector<Tensor>& inputs) const override {
    require_square(inputs[0].shape);
    return {{inputs[0].shape[0], triangle(inputs[0].shape[1])}};
  }

  void compute(Call& call) const override {
    with_element(call.inputs[0].type, [&](auto element) {
      using T = decltype(element);
      const int64_t batch = call.inputs[0].shape[0], d = call.inputs[0].shape[1];
      const T* s = call.inputs[0].as<T>();
      spread(call, batch, [&](int64_t matrix, int64_t) {
        take(s + matrix * d * d, d, call.output<T>() + matrix * triangle(d));
      });
    });
  }

 private:
  template <class T>
  void take(const T* s, int64_t d, T* y) const {
    if (order == "row") {
      for (int64_t i = 0; i < d; ++i)
        for (int64_t j = i; j < d; ++j) *y++ = entry(s[i * d + j], i != j);
      return;
    }
    const bool diagonal = order == "column";
    if (!diagonal)
      for (int64_t i = 0; i < d; ++i) *y++ = s[i * d + i];
    for (int64_t j = 0; j < d; ++j)
      for (int64_t i = 0; i < j + diagonal; ++i) *y++ = entry(s[i * d + j], i != j);
  }

  template <class T>
  T entry(T value, bool above) const {
    return isometric && above ? narrow<T>(computed<T>(1.41421356237309504880) * widen(value)) : value;
  }
};

}  // namespace

extern const Operator upper_triangle{"UpperTriangle", {Type::SAME}, {Type::SAME}, create<UpperTriangle>};

}  // namespace poolexport
