// PositionSensitiveRoiPool: every bin of a box has channels of its own; their mean over the cells of the bin.
#include "core/lanes.h"
#include "core/boxes.h"
#include "core/window.h"

namespace poolexport {
namespace {

template <class T>
struct Job {
  const T* x;
  T* y;
  const int64_t* maps;
  const Run* runs;  // of every box, first those along the rows, then those along the columns
  int64_t channels, groups, rows, columns, height, width;
};

// A group is the bins of a box in one channel of the output.
template <class T>
POOL_INLINE void groups_of(const Job<T>& job, size_t first, size_t last) {
  for (size_t index = first; index < last; ++index) {
    const int64_t box = int64_t(index) / job.groups, group = int64_t(index) % job.groups, bins = job.rows * job.columns;
    const Run *down = job.runs + box * (job.rows + job.columns), *across = down + job.rows;
    for (int64_t bin = 0; bin < bins; ++bin) {
      const Run high = down[bin / job.columns], wide = across[bin % job.columns];
      const int64_t cells = wide.end - wide.first;
      const T* plane = job.x + (job.maps[box] * job.channels + group * bins + bin) * job.height * job.width;
      double total = 0;
      if (cells > 0)
        for (int64_t h = high.first; h < high.end; ++h) total += sum_in_double(plane + h * job.width + wide.first, cells);
      const bool empty = cells <= 0 || high.end <= high.first;
      const double mean = empty ? 0.0 : total / double((high.end - high.first) * cells);
      job.y[int64_t(index) * bins + bin] = narrow<T>(computed<T>(mean));
    }
  }
}

POOL_FOR_EACH_ELEMENT(groups, Job)

struct PositionSensitiveRoiPool final : Kernel {
  Boxes boxes;
  Rule rule;

  explicit PositionSensitiveRoiPool(const Attributes& attributes) : boxes(attributes) {
    const std::string named = attributes.get<std::string>("rule", "torchvision");
    if (named != "torchvision" && named != "r-fcn") refuse("rule must be torchvision or r-fcn, not '%s'", named.c_str());
    rule = named == "r-fcn" ? Rule{0, 0, true} : Rule{0, 1, false};
  }

  std::vector<Shape> shapes(const std::vector<Tensor>& inputs) const override {
    boxes.require(inputs);
    const int64_t channels = inputs[0].shape[1], bins = boxes.bins[0] * boxes.bins[1];
    if (channels != UNKNOWN && channels % bins != 0)
      refuse("%lld channels cannot be shared out among %lld bins", static_cast<long long>(channels),
             static_cast<long long>(bins));
    const int64_t groups = channels == UNKNOWN ? UNKNOWN : channels / bins;
    return {{inputs[1].shape[0], groups, boxes.bins[0], boxes.bins[1]}};
  }

  void compute(Call& call) const override {
    const Tensor &x = call.inputs[0], &rois = call.inputs[1];
    const std::vector<int64_t> maps = maps_of(x, rois);
    const int64_t each = boxes.bins[0] + boxes.bins[1];
    std::vector<Run> runs(count({rois.shape[0], each}));
    for (int64_t box = 0; box < rois.shape[0]; ++box)
      for (size_t axis = 0; axis < 2; ++axis)
        lay(runs.data() + box * each + (axis ? boxes.bins[0] : 0), boxes, rule, rois, box, axis, x.shape[axis + 2]);
    with_element(x.type, [&](auto element) {
      using T = decltype(element);
      const Job<T> job{x.as<T>(), call.output<T>(), maps.data(), runs.data(), x.shape[1], call.shapes[0][1],
                       boxes.bins[0], boxes.bins[1], x.shape[2], x.shape[3]};
      call.split(size_t(rois.shape[0] * job.groups),
                 [&](size_t first, size_t last, size_t) { groups(job, first, last); });
    });
  }
};

}  // namespace

extern const Operator position_sensitive_roi_pool{
    "PositionSensitiveRoiPool", {Type::SAME, Type::ANY}, {Type::SAME}, create<PositionSensitiveRoiPool>};

}  // namespace poolexport
