// Adaptive bins: regions that share the cells of an axis out among a given number of outputs.
#pragma once

#include "core/regions.h"

namespace poolexport {

class Bins {
 public:
  // Reads output_size: bins per spatial axis, 0 for an axis that is kept.
  explicit Bins(const Attributes& attributes);

  // (N, C, *output_size); refuses a map of another rank, and one without cells to pool.
  Shape output_shape(const Shape& x) const;
  // Bin i of o holds the cells floor(i n / o) ... ceil((i + 1) n / o) - 1.
  Regions regions(const Shape& x) const;

 private:
  Shape size_;
};

}  // namespace poolexport
