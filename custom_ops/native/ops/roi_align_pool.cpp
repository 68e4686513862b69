// RoiAlignPool: the mean of the interpolated samples of every bin of every box.
#include <algorithm>
#include <cmath>

#include "core/boxes.h"
#include "core/number.h"
#include "core/window.h"

namespace poolexport {
namespace {

// Cells from first on that the samples of a bin lie between, with their weights in its mean, which none exceeds.
struct Taps {
  int64_t first, count;
  size_t weights;  // where they begin
};

// The taps of all bins of all boxes: those of a box along the rows, then those along the columns.
struct Table {
  std::vector<Taps> taps;
  std::vector<double> weights;
};

template <class T>
struct Job {
  const T* x;
  T* y;
  const int64_t* maps;
  const Taps* taps;
  const double* weights;
  int64_t channels, rows, columns, height, width;
  double* scratch;
};

// A plane is the bins of a box in one channel. Rows are added up first, over all columns that the box needs.
template <class T>
POOL_INLINE void planes_of(const Job<T>& job, size_t first, size_t last) {
  for (size_t index = first; index < last; ++index) {
    const int64_t box = int64_t(index) / job.channels, channel = int64_t(index) % job.channels;
    const Taps *down = job.taps + box * (job.rows + job.columns), *across = down + job.rows;
    const T* plane = job.x + (job.maps[box] * job.channels + channel) * job.height * job.width;
    int64_t begin = job.width, end = 0;
    for (int64_t j = 0; j < job.columns; ++j) {
      if (across[j].count == 0) continue;
      begin = std::min(begin, across[j].first), end = std::max(end, across[j].first + across[j].count);
    }
    T* y = job.y + int64_t(index) * job.rows * job.columns;
    double* __restrict const sums = job.scratch;
    for (int64_t i = 0; i < job.rows; ++i, y += job.columns) {
      for (int64_t k = 0; k < end - begin; ++k) sums[k] = 0;
      for (int64_t t = 0; t < down[i].count; ++t) {
        const double weight = job.weights[down[i].weights + size_t(t)];
        const T* line = plane + (down[i].first + t) * job.width + begin;
        // What has no weight adds nothing, whatever it holds.
        if (weight == 0) continue;
        for (int64_t k = 0; k < end - begin; ++k) sums[k] += weight * double(widen(line[k]));
      }
      for (int64_t j = 0; j < job.columns; ++j) {
        const double *weights = job.weights + across[j].weights, *cells = sums + (across[j].first - begin);
        double total = 0;
        for (int64_t t = 0; t < across[j].count; ++t) total += weights[t] == 0 ? 0.0 : weights[t] * cells[t];
        y[j] = narrow<T>(computed<T>(total));
      }
    }
  }
}

POOL_FOR_EACH_ELEMENT(planes, Job)

struct RoiAlignPool final : Kernel {
  Boxes boxes;
  int64_t ratio;
  bool aligned;

  explicit RoiAlignPool(const Attributes& attributes)
      : boxes(attributes),
        ratio(attributes.get<int64_t>("sampling_ratio", 0)),
        aligned(attributes.get<int64_t>("aligned", 0) != 0) {
    if (ratio < 0 || ratio > (1 << 16))
      refuse("sampling_ratio must lie between 0 and 65536, not at %lld", static_cast<long long>(ratio));
  }

  std::vector<Shape> shapes(const std::vector<Tensor>& inputs) const override {
    boxes.require(inputs);
    return {{inputs[1].shape[0], inputs[0].shape[1], boxes.bins[0], boxes.bins[1]}};
  }

  void compute(Call& call) const override {
    const Tensor &x = call.inputs[0], &rois = call.inputs[1];
    const std::vector<int64_t> maps = maps_of(x, rois);
    Table table;
    for (int64_t box = 0; box < rois.shape[0]; ++box)
      for (size_t axis : {0, 1})
        if (rois.type == Type::DOUBLE)
          place(table, Ends<double>(rois, box, axis), boxes.bins[axis], x.shape[axis + 2], box);
        else
          place(table, Ends<float>(rois, box, axis), boxes.bins[axis], x.shape[axis + 2], box);
    with_element(x.type, [&](auto element) {
      using T = decltype(element);
      const Job<T> whole{x.as<T>(), call.output<T>(), maps.data(), table.taps.data(), table.weights.data(), x.shape[1],
                         boxes.bins[0], boxes.bins[1], x.shape[2], x.shape[3], nullptr};
      for_rows<double>(call, rois.shape[0] * x.shape[1], size_t(x.shape[3]), [&](size_t first, size_t last, double* scratch) {
        Job<T> job = whole;
        job.scratch = scratch;
        planes(job, first, last);
      });
    });
  }

  // Adds the taps of the bins of a box along an axis. Positions are in the type of the boxes.
  template <class R>
  void place(Table& table, Ends<R> ends, int64_t bins, int64_t cells, int64_t box) const {
    const R scale = R(boxes.scale), offset = aligned ? R(0.5) : R(0);
    const R start = rounded(ends.start * scale) - offset, end = rounded(ends.end * scale) - offset;
    R length = end - start;
    if (!aligned && length < 1) length = 1;
    const R size = length / R(bins);
    if (!(std::fabs(start) <= std::numeric_limits<R>::max() && std::fabs(size) <= std::numeric_limits<R>::max()))
      refuse("box %lld is not finite, or too far away", static_cast<long long>(box));
    const int64_t wanted = ratio > 0 ? ratio : whole(std::ceil(size)), count = std::max<int64_t>(wanted, 1);
    const R last = R(cells - 1);
    for (int64_t i = 0; i < bins; ++i) {
      const R begin = start + rounded(R(i) * size);
      const auto position = [&](int64_t t) { return begin + rounded((R(t) + R(0.5)) * size) / R(count); };
      Taps taps{0, 0, table.weights.size()};
      if (wanted > 0) {
        // Positions only grow, or only shrink: those on the map follow each other.
        const bool grows = size >= 0;
        const auto before = [&](int64_t t) { return grows ? position(t) < R(-1) : position(t) > R(cells); };
        const auto after = [&](int64_t t) { return grows ? position(t) > R(cells) : position(t) < R(-1); };
        const int64_t from = first_not(0, count, before);
        const int64_t to = first_not(from, count, [&](int64_t t) { return !after(t); });
        // Where numbers are so large that samples coincide, there may be any number of them.
        if (to - from > std::max<int64_t>(1 << 16, 4 * (cells + 2)))
          refuse("box %lld is too large: a bin has %lld samples", static_cast<long long>(box),
                 static_cast<long long>(count));
        add(table, taps, from, to, position, last, double(count));
      }
      table.taps.push_back(taps);
    }
  }

  // The first number from low on, below high, of which something that holds for a while holds no longer.
  template <class Holds>
  static int64_t first_not(int64_t low, int64_t high, const Holds& holds) {
    while (low < high) {
      const int64_t middle = low + (high - low) / 2;
      if (holds(middle))
        low = middle + 1;
      else
        high = middle;
    }
    return low;
  }

  // Adds the weights of the samples from one up to another, all on the map.
  template <class Position, class R>
  static void add(Table& table, Taps& taps, int64_t from, int64_t to, const Position& position, R last, double count) {
    if (from >= to) return;
    const auto cell = [&](int64_t t) { return std::min(std::floor(std::max(position(t), R(0))), last); };
    const int64_t one = int64_t(cell(from)), other = int64_t(cell(to - 1)), end = int64_t(last) + 1;
    taps.first = std::min(one, other);
    taps.count = std::min(std::max(one, other) + 2, end) - taps.first;
    table.weights.resize(taps.weights + size_t(taps.count));
    double* const weights = table.weights.data() + taps.weights;
    for (int64_t t = from; t < to; ++t) {
      const R low = cell(t), at = std::max(position(t), R(0));
      const double share = low >= last ? 0.0 : double(at - low);
      const int64_t place = int64_t(low) - taps.first;
      weights[place] += (1 - share) / count;
      if (share > 0) weights[place + 1] += share / count;
    }
  }
};

}  // namespace

extern const Operator roi_align_pool{"RoiAlignPool", {Type::SAME, Type::ANY}, {Type::SAME}, create<RoiAlignPool>};

}  // namespace poolexport
