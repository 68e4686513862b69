// Tensors of any floating-point type as float64.
#pragma once

#include "core/operator.h"

namespace poolexport {

inline std::vector<double> doubles(const Tensor& tensor) {
  std::vector<double> values(count(tensor.shape));
  with_element(tensor.type, [&](auto element) {
    const auto* from = tensor.as<decltype(element)>();
    for (size_t i = 0; i < values.size(); ++i) values[i] = widen(from[i]);
  });
  return values;
}

}  // namespace poolexport
