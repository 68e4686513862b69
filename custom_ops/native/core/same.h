// "Same" padding: as many windows as strides fit into a map, and pads that follow from its lengths.
#pragma once

#include "core/window.h"

namespace poolexport {

class SameWindow {
 public:
  // Reads kernel_shape, strides and dilations.
  explicit SameWindow(const Attributes& attributes)
      : window_(attributes.get<Shape>("kernel_shape"), attributes.get<Shape>("strides"),
                Shape(2 * attributes.get<Shape>("kernel_shape").size()), attributes.get<Shape>("dilations", {})) {}

  // (N, C, *output); refuses a map of another rank, and one without a cell.
  Shape output_shape(const Shape& x) const {
    const size_t rank = window_.rank();
    if (x.size() != rank + 2)
      refuse("an input of shape %s has %zu axes, and kernel_shape %s needs %zu", spelled(x).c_str(), x.size(),
             spelled(window_.kernel).c_str(), rank + 2);
    Shape shape = x;
    for (size_t i = 0; i < rank; ++i) {
      int64_t& length = shape[i + 2];
      if (length == 0) refuse("there is nothing to pool in an input of shape %s", spelled(x).c_str());
      if (length != UNKNOWN) length = (length - 1) / window_.strides[i] + 1;
    }
    return shape;
  }

  // The window with the pads that a map of this shape gets.
  Window on(const Shape& x) const {
    const size_t rank = window_.rank();
    Shape pads(2 * rank);
    for (size_t i = 0; i < rank; ++i) {
      const int64_t length = x[i + 2], stride = window_.strides[i];
      const int64_t extent = window_.dilations[i] * (window_.kernel[i] - 1) + 1;
      const int64_t total = std::max<int64_t>((length - 1) / stride * stride + extent - length, 0);
      pads[i] = total / 2;
      pads[rank + i] = total - total / 2;
    }
    return Window(window_.kernel, window_.strides, pads, window_.dilations);
  }

 private:
  Window window_;
};

}  // namespace poolexport
