// PyramidLevelPool: one level of a spatial pyramid, n by n bins, by the rules that are not adaptive bins.
#include <cmath>

#include "core/regions.h"

namespace poolexport {
namespace {

struct PyramidLevelPool final : Kernel {
  enum Rule { WINDOW_STRIDE, CAFFE, SPPNET } rule;
  int64_t bins;
  bool average;

  explicit PyramidLevelPool(const Attributes& attributes) : bins(attributes.get<int64_t>("bins")) {
    const std::string named = attributes.get<std::string>("rule"), reduce = attributes.get<std::string>("reduce");
    if (bins < 1 || bins > (int64_t{1} << 24)) refuse("bins must lie between 1 and 2^24, not at %lld", static_cast<long long>(bins));
    if (named != "window_stride" && named != "caffe" && named != "sppnet")
      refuse("rule must be window_stride, caffe or sppnet, not '%s'", named.c_str());
    if (reduce != "max" && reduce != "average") refuse("reduce must be max or average, not '%s'", reduce.c_str());
    rule = named == "caffe" ? CAFFE : named == "sppnet" ? SPPNET : WINDOW_STRIDE;
    average = reduce == "average";
    if (average && rule == SPPNET) refuse("the rule sppnet has no averages");
  }

  std::vector<Shape> shapes(const std::vector<Tensor>& inputs) const override {
    const Shape& x = inputs[0].shape;
    if (x.size() != 4) refuse("an input of shape %s has %zu axes, and 4 are needed", spelled(x).c_str(), x.size());
    return {{x[0], x[1], bins, bins}};
  }

  void compute(Call& call) const override {
    const Shape& x = call.inputs[0].shape;
    Regions regions(x, call.shapes[0]);
    for (size_t axis = 0; axis < 2; ++axis) fill(regions.runs(0, axis), x[axis + 2]);
    regions.close();
    if (average)
      means_of_regions(call, regions, {longest(x[2]), longest(x[3])});
    else
      largest_of_regions(call, regions, rule == SPPNET);
  }

  // Cells of a window.
  int64_t longest(int64_t cells) const { return (cells + bins - 1) / bins; }

  void fill(Run* runs, int64_t cells) const {
    const long long n = bins, length = cells, window = longest(cells);
    if (cells == 0) refuse("there is nothing to pool");
    if (rule == SPPNET) {
      // In single precision, as the detection code has it.
      const auto edge = [&](int64_t i) { return float(i) / float(bins) * float(cells); };
      for (int64_t i = 0; i < bins; ++i)
        runs[i] = {int64_t(std::floor(edge(i))), int64_t(std::ceil(edge(i + 1)))};
    } else if (rule == CAFFE) {
      const int64_t pad = (bins * window - cells + 1) / 2;
      if (pad >= window)
        refuse("%lld bins of %lld cells need %lld pads, as many as the %lld cells of a window", n, length,
               static_cast<long long>(pad), window);
      for (int64_t i = 0; i < bins; ++i) {
        const int64_t first = i * window - pad;
        runs[i] = {first > 0 ? first : 0, first + window < cells ? first + window : cells};
      }
    } else {
      const int64_t stride = cells / bins;
      const int64_t found = stride > 0 ? (cells - window) / stride + 1 : 0;
      if (found != bins)
        refuse("windows of %lld cells every %lld of %lld make %lld bins, and not %lld", window,
               static_cast<long long>(stride), length, static_cast<long long>(found), n);
      for (int64_t i = 0; i < bins; ++i) runs[i] = {i * stride, i * stride + window};
    }
  }
};

}  // namespace

extern const Operator pyramid_level_pool{"PyramidLevelPool", {Type::SAME}, {Type::SAME}, create<PyramidLevelPool>};

}  // namespace poolexport
