#include "core/boxes.h"

#include <algorithm>
#include <cmath>

#include "core/number.h"

namespace poolexport {
namespace {

// Nearest whole number, halves away from zero.
template <class R>
R half_away(R x) {
  const R size = std::fabs(x), below = std::floor(size);
  const R sign = x > 0 ? R(1) : x < 0 ? R(-1) : x;
  return sign * (below + (size - below >= R(0.5) ? R(1) : R(0)));
}

// Integers wrap around, as tensors of them do.
int64_t plus(int64_t a, int64_t b) { return int64_t(uint64_t(a) + uint64_t(b)); }
int64_t minus(int64_t a, int64_t b) { return int64_t(uint64_t(a) - uint64_t(b)); }

template <class R>
void lay_in(Run* runs, int64_t bins, R scale, const Rule& rule, Ends<R> ends, int64_t cells) {
  R size, start = 0;
  int64_t shift = 0;
  if (rule.rounds_first) {
    start = half_away(ends.start) * scale;
    const R length = rounded((half_away(ends.end) + R(1)) * scale) - rounded(start);
    size = (length > R(0.1) || length != length ? length : R(0.1)) / R(bins);
  } else {
    shift = whole(half_away(ends.start * scale));
    const int64_t end = whole(half_away(ends.end * scale));
    size = R(std::max<int64_t>(plus(minus(end, shift), rule.extra), 1)) / R(bins);
  }
  const auto edge = [&](int64_t i) { return rule.rounds_first ? rounded(R(i) * size) + start : R(i) * size; };
  const auto cut = [&](R x) {
    return std::min(std::max<int64_t>(plus(whole(x), shift), 0), cells - rule.unused);
  };
  for (int64_t i = 0; i < bins; ++i) runs[i] = {cut(std::floor(edge(i))), cut(std::ceil(edge(i + 1)))};
}

template <class R>
void number_maps(std::vector<int64_t>& maps, const R* rois, int64_t batch) {
  for (size_t box = 0; box < maps.size(); ++box) {
    const int64_t number = whole(rois[box * 5]);
    if (number < -batch || number >= batch)
      refuse("box %zu is on map %g, but there are %lld maps", box, double(rois[box * 5]), static_cast<long long>(batch));
    maps[box] = number < 0 ? number + batch : number;
  }
}

}  // namespace

Boxes::Boxes(const Attributes& attributes)
    : scale(number_of("spatial_scale", attributes.get<std::string>("spatial_scale"))) {
  const Shape size = attributes.get<Shape>("output_size");
  constexpr int64_t limit = int64_t{1} << 24;
  if (size.size() != 2 || size[0] < 1 || size[1] < 1 || size[0] > limit || size[1] > limit)
    refuse("output_size must be two numbers from 1 to 2^24, not %s", spelled(size).c_str());
  std::copy(size.begin(), size.end(), bins);
}

void Boxes::require(const std::vector<Tensor>& inputs) const {
  const Tensor &x = inputs[0], &rois = inputs[1];
  if (x.rank() != 4) refuse("maps of shape %s have %zu axes, and 4 are needed", spelled(x.shape).c_str(), x.rank());
  if (rois.rank() != 2 || (rois.shape[1] != 5 && rois.shape[1] != UNKNOWN))
    refuse("boxes must have shape (R, 5), not %s", spelled(rois.shape).c_str());
  if (rois.type != Type::FLOAT && rois.type != Type::DOUBLE)
    refuse("boxes must be float32 or float64, not values of type %d", static_cast<int>(rois.type));
  if (rois.shape[0] > 0 && (x.shape[2] == 0 || x.shape[3] == 0))
    refuse("there is nothing to pool in maps of shape %s", spelled(x.shape).c_str());
}

std::vector<int64_t> maps_of(const Tensor& x, const Tensor& rois) {
  std::vector<int64_t> maps(static_cast<size_t>(rois.shape[0]));
  if (rois.type == Type::DOUBLE)
    number_maps(maps, rois.as<double>(), x.shape[0]);
  else
    number_maps(maps, rois.as<float>(), x.shape[0]);
  return maps;
}

void lay(Run* runs, const Boxes& boxes, const Rule& rule, const Tensor& rois, int64_t box, size_t axis, int64_t cells) {
  if (rois.type == Type::DOUBLE)
    lay_in(runs, boxes.bins[axis], boxes.scale, rule, Ends<double>(rois, box, axis), cells);
  else
    lay_in(runs, boxes.bins[axis], float(boxes.scale), rule, Ends<float>(rois, box, axis), cells);
}

}  // namespace poolexport
