// The mean of every window, for the operators that differ in how windows are padded and what they divide by.
#pragma once

#include "core/coverage.h"
#include "core/fold.h"

namespace poolexport {

struct Mean {
  Window window;
  Shape counted;     // how many pads of each side count in the divisor: begin..., then end...
  int64_t divisor;   // of every window, or 0 for the number of its counted cells
  bool precise;      // sums are made in double
};

// Writes the mean of every window of x; NaN where no cell of a window counts.
void mean_windows(const Call& call, const Mean& mean);

}  // namespace poolexport
