#include "core/bins.h"

namespace poolexport {

Bins::Bins(const Attributes& attributes) : size_(attributes.get<Shape>("output_size")) {
  constexpr int64_t limit = int64_t{1} << 31;
  bool valid = size_.size() >= 1 && size_.size() <= 3;
  for (int64_t size : size_) valid = valid && size >= 0 && size <= limit;
  if (!valid) refuse("output_size must be 1, 2 or 3 numbers from 0 to 2^31, not %s", spelled(size_).c_str());
}

Shape Bins::output_shape(const Shape& x) const {
  if (x.size() != size_.size() + 2)
    refuse("an input of shape %s has %zu axes, and output_size %s needs %zu", spelled(x).c_str(), x.size(),
           spelled(size_).c_str(), size_.size() + 2);
  Shape shape(x.begin(), x.begin() + 2);
  for (size_t i = 0; i < size_.size(); ++i) {
    if (size_[i] > 0 && x[i + 2] == 0 && x[0] > 0 && x[1] > 0)
      refuse("there is nothing to pool in an input of shape %s", spelled(x).c_str());
    shape.push_back(size_[i] > 0 ? size_[i] : x[i + 2]);
  }
  return shape;
}

Regions Bins::regions(const Shape& x) const {
  Regions regions(x, output_shape(x));
  for (size_t axis = 0; axis < size_.size(); ++axis) {
    Run* const runs = regions.runs(0, axis);
    const int64_t n = x[axis + 2], o = size_[axis] > 0 ? size_[axis] : n;
    for (int64_t i = 0; i < o; ++i) {
      // i n / o without a product that could overflow.
      const int64_t whole = n / o, rest = n % o;
      runs[i] = {i * whole + i * rest / o, (i + 1) * whole + ((i + 1) * rest + o - 1) / o};
    }
  }
  regions.close();
  return regions;
}

}  // namespace poolexport
