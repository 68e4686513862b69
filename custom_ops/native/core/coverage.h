// How many cells of every window count: those on the map, or on the first pads around it.
#pragma once

#include "core/window.h"

namespace poolexport {

// Numbers of counted cells by axis; that of a window is the product of three.
class Coverage {
 public:
  // Cells on the map and on the first `counted` pads of each side, which are begin..., then end....
  Coverage(const Geometry& g, const Shape& counted) {
    const size_t rank = counted.size() / 2, missing = 3 - rank;
    for (size_t i = 0; i < 3; ++i) {
      const bool there = i >= missing;
      low_[i] = there ? -counted[i - missing] : 0;
      high_[i] = g.length[i] + (there ? counted[i - missing + rank] : 0);
    }
  }

  // Counted cells of the window at an output position along an axis.
  POOL_INLINE int64_t along(const Geometry& g, size_t axis, int64_t position) const {
    const int64_t first = position * g.stride[axis] - g.begin[axis], gap = g.dilation[axis], taps = g.kernel[axis];
    if (first >= low_[axis] && first + (taps - 1) * gap < high_[axis]) return taps;
    const int64_t skipped = first < low_[axis] ? (low_[axis] - first + gap - 1) / gap : 0;
    const int64_t reached = first < high_[axis] ? (high_[axis] - 1 - first) / gap + 1 : 0;
    const int64_t end = reached < taps ? reached : taps;
    return end > skipped ? end - skipped : 0;
  }

 private:
  int64_t low_[3], high_[3];
};

}  // namespace poolexport
