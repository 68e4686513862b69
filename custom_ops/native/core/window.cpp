#include "core/window.h"

namespace poolexport {

Window::Window(const Attributes& attributes)
    : Window{attributes.get<Shape>("kernel_shape"), attributes.get<Shape>("strides"), attributes.get<Shape>("pads"),
             attributes.get<Shape>("dilations", {})} {}

Window::Window(Shape kernel_shape, Shape steps, const Shape& pads, Shape gaps)
    : kernel(std::move(kernel_shape)), strides(std::move(steps)), dilations(std::move(gaps)) {
  const size_t axes = kernel.size();
  if (axes < 1 || axes > 3) refuse("kernel_shape must have 1, 2 or 3 entries, not %zu", axes);
  if (dilations.empty()) dilations.assign(axes, 1);
  if (strides.size() != axes || pads.size() != 2 * axes || dilations.size() != axes)
    refuse("kernel_shape has %zu entries, so strides and dilations need as many and pads twice as many", axes);
  begin.assign(pads.begin(), pads.begin() + int64_t(axes));
  end.assign(pads.begin() + int64_t(axes), pads.end());
  constexpr int64_t limit = int64_t{1} << 31;
  for (size_t i = 0; i < axes; ++i) {
    if (kernel[i] < 1 || strides[i] < 1 || dilations[i] < 1 || begin[i] < 0 || end[i] < 0)
      refuse("kernel_shape, strides and dilations must be positive, and pads not negative");
    if (kernel[i] > limit || strides[i] > limit || dilations[i] > limit || begin[i] > limit || end[i] > limit)
      refuse("a window of kernel_shape %s, strides %s and pads %s is too large", spelled(kernel).c_str(),
             spelled(strides).c_str(), spelled(pads).c_str());
  }
  if (size() > limit) refuse("a window of kernel_shape %s is too large", spelled(kernel).c_str());
}

int64_t Window::size() const { return int64_t(count(kernel)); }

Shape Window::output_shape(const Shape& x) const {
  if (x.size() != rank() + 2) {
    refuse("an input of shape %s has %zu axes, and kernel_shape %s needs %zu", spelled(x).c_str(), x.size(),
           spelled(kernel).c_str(), rank() + 2);
  }
  Shape shape(x.begin(), x.begin() + 2);
  for (size_t i = 0; i < rank(); ++i) {
    const int64_t length = x[i + 2], extent = dilations[i] * (kernel[i] - 1) + 1;
    const int64_t room = length + begin[i] + end[i] - extent;
    if (length != UNKNOWN && (length < 1 || room < 0))
      refuse("the window does not fit: spatial axis %zu has length %lld, and the kernel spans %lld", i,
             static_cast<long long>(length), static_cast<long long>(extent));
    shape.push_back(length == UNKNOWN ? UNKNOWN : room / strides[i] + 1);
  }
  return shape;
}

void require_like(const Shape& x, const Shape& other, const char* name) {
  bool alike = x.size() == other.size();
  for (size_t i = 0; alike && i < x.size(); ++i)
    alike = x[i] == other[i] || (i == 1 && other[i] == 1) || x[i] == UNKNOWN || other[i] == UNKNOWN;
  if (!alike) refuse("%s has shape %s, which does not suit %s", name, spelled(other).c_str(), spelled(x).c_str());
}

Geometry::Geometry(const Window& window, const Shape& x) : planes(x[0] * x[1]), cells(window.size()) {
  const Shape y = window.output_shape(x);
  const size_t rank = window.rank(), missing = 3 - rank;
  for (size_t i = 0; i < 3; ++i) {
    const bool there = i >= missing;
    const size_t axis = there ? i - missing : 0;
    length[i] = there ? x[axis + 2] : 1;
    output[i] = there ? y[axis + 2] : 1;
    kernel[i] = there ? window.kernel[axis] : 1;
    stride[i] = there ? window.strides[axis] : 1;
    begin[i] = there ? window.begin[axis] : 0;
    dilation[i] = there ? window.dilations[axis] : 1;
  }
}

}  // namespace poolexport
