// Fractional regions: where the windows of fractional max pooling lie, by torch's rule or by Graham's.
#pragma once

#include <string>
#include <vector>

#include "core/regions.h"

namespace poolexport {

class Fractional {
 public:
  // Reads kernel_shape, output_size, output_ratio, regions, overlapping, precision and per_plane.
  explicit Fractional(const Attributes& attributes);

  // (N, C, *output); refuses maps that the regions do not fit, and samples that are missing.
  Shape output_shape(const Tensor& x, const Tensor& samples) const;
  Regions regions(const Tensor& x, const Tensor& samples) const;

 private:
  enum Rule { TORCH, PSEUDORANDOM, RANDOM };

  void fill(Run* runs, size_t axis, int64_t n, int64_t o, const double* samples, int64_t keys) const;

  Shape kernel_, size_;
  std::vector<double> ratio_;
  Rule rule_;
  bool overlapping_, single_, per_plane_;
};

}  // namespace poolexport
