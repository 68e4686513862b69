// RoiMaxPool: the largest cell of every bin of every box; 0 for a bin without cells.
#include "core/boxes.h"

namespace poolexport {
namespace {

struct RoiMaxPool final : Kernel {
  Boxes boxes;

  explicit RoiMaxPool(const Attributes& attributes) : boxes(attributes) {}

  std::vector<Shape> shapes(const std::vector<Tensor>& inputs) const override {
    boxes.require(inputs);
    return {{inputs[1].shape[0], inputs[0].shape[1], boxes.bins[0], boxes.bins[1]}};
  }

  void compute(Call& call) const override {
    const Tensor &x = call.inputs[0], &rois = call.inputs[1];
    Regions regions(x.shape, call.shapes[0], rois.shape[0]);
    regions.maps = maps_of(x, rois);
    regions.per_map = 1;
    for (int64_t box = 0; box < rois.shape[0]; ++box)
      for (size_t axis = 0; axis < 2; ++axis)
        lay(regions.runs(box, axis), boxes, Rule{1, 0, false}, rois, box, axis, x.shape[axis + 2]);
    regions.close(true);
    largest_of_regions(call, regions);
  }
};

}  // namespace

extern const Operator roi_max_pool{"RoiMaxPool", {Type::SAME, Type::ANY}, {Type::SAME}, create<RoiMaxPool>};

}  // namespace poolexport
