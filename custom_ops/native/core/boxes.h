// Boxes on maps, (R, 5): number of a map, x1, y1, x2, y2; and the bins that they are cut into along an axis.
//
// Where a bin begins and ends is decided by rounded products, so everything is worked out in the type of the boxes, one
// rounding after every operation.
#pragma once

#include <string>
#include <vector>

#include "core/regions.h"

namespace poolexport {

// How a box is laid over cells.
struct Rule {
  int64_t extra;      // cells that a box is longer than the distance of its ends
  int64_t unused;     // cells at the end of every axis that no bin reaches
  bool rounds_first;  // whether ends are rounded before they are scaled
};

class Boxes {
 public:
  // Reads output_size, rows and columns of bins, and spatial_scale, cells per unit of the boxes as a text.
  explicit Boxes(const Attributes& attributes);

  // Bins along the rows and the columns.
  int64_t bins[2];
  double scale;

  // Refuses inputs that are no maps and boxes.
  void require(const std::vector<Tensor>& inputs) const;
};

// Input map of every box; -1 is the last one, and a number outside of the batch is refused.
std::vector<int64_t> maps_of(const Tensor& x, const Tensor& rois);
// Bins of a box along an axis of so many cells, 0 the rows and 1 the columns.
void lay(Run* runs, const Boxes& boxes, const Rule& rule, const Tensor& rois, int64_t box, size_t axis, int64_t cells);

// Both ends of a box along an axis, in the type of the boxes.
template <class R>
struct Ends {
  R start, end;
  Ends(const Tensor& rois, int64_t box, size_t axis)
      : start(rois.as<R>()[box * 5 + (axis == 0 ? 2 : 1)]), end(rois.as<R>()[box * 5 + (axis == 0 ? 4 : 3)]) {}
};

}  // namespace poolexport
