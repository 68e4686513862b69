#include "core/fractional.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <sstream>

#include "core/number.h"

namespace poolexport {
namespace {

//: Longer axes are not exact in the arithmetic of the rules, nor sensible.
constexpr int64_t LIMIT = int64_t{1} << 31;

// First cells of torch's windows of k cells, in the given precision.
template <class R>
void start(Run* runs, int64_t n, int64_t o, int64_t k, double sample) {
  const R s = R(sample), alpha = R(n - k) / R(std::max<int64_t>(o - 1, 1));
  const int64_t before = whole(s * alpha);
  for (int64_t i = 0; i < o; ++i) {
    const int64_t first = i == o - 1 ? n - k : whole(rounded(R(i) + s) * alpha) - before;
    runs[i] = {first, first + k};
  }
}

// Graham's pseudorandom borders, o + 1 of them.
std::vector<int64_t> pseudorandom(int64_t n, int64_t o, double sample) {
  std::vector<int64_t> borders(size_t(o + 1));
  const int64_t f = n / o;
  const double alpha = double(n) / double(o);
  const double bound = std::min(double(f + 2) / alpha - 1, double(n + 1 - f) / alpha - double(o - 1));
  const double u = rounded(sample * bound);
  for (int64_t i = 1; i < o; ++i)
    borders[size_t(i)] = n % o == 0 ? i * f : whole(std::ceil(alpha * (double(i) + u))) - 1;
  borders[size_t(o)] = n;
  return borders;
}

// Graham's random borders: the steps with the smallest keys are a cell longer. Keys are used in turn.
std::vector<int64_t> random(int64_t n, int64_t o, const std::vector<double>& keys) {
  std::vector<int64_t> order(static_cast<size_t>(o)), borders(order.size() + 1);
  std::iota(order.begin(), order.end(), 0);
  const auto key = [&](int64_t i) { return keys[size_t(i) % keys.size()]; };
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return key(a) < key(b); });
  for (int64_t i = 0; i < o; ++i) borders[size_t(order[size_t(i)] + 1)] = n / o + (i < n % o ? 1 : 0);
  std::partial_sum(borders.begin(), borders.end(), borders.begin());
  return borders;
}

}  // namespace

Fractional::Fractional(const Attributes& attributes)
    : kernel_(attributes.get<Shape>("kernel_shape")),
      size_(attributes.get<Shape>("output_size")),
      overlapping_(attributes.get<int64_t>("overlapping") != 0),
      per_plane_(attributes.get<int64_t>("per_plane") != 0) {
  const std::string regions = attributes.get<std::string>("regions"), precision = attributes.get<std::string>("precision");
  if (regions != "torch" && regions != "pseudorandom" && regions != "random")
    refuse("regions must be torch, pseudorandom or random, not '%s'", regions.c_str());
  if (precision != "float32" && precision != "float64")
    refuse("precision must be float32 or float64, not '%s'", precision.c_str());
  rule_ = regions == "torch" ? TORCH : regions == "random" ? RANDOM : PSEUDORANDOM;
  single_ = precision == "float32";
  if (per_plane_ && rule_ != TORCH) refuse("only torch's regions may have samples for every plane");
  if (size_.size() < 1 || size_.size() > 3 || kernel_.size() != size_.size())
    refuse("output_size and kernel_shape must have 1, 2 or 3 entries each, not %zu and %zu", size_.size(), kernel_.size());
  for (size_t i = 0; i < size_.size(); ++i)
    if (size_[i] < 0 || size_[i] > LIMIT || kernel_[i] < (rule_ == TORCH ? 1 : 0) || kernel_[i] > LIMIT)
      refuse("there are no regions of kernel_shape %s and output_size %s", spelled(kernel_).c_str(), spelled(size_).c_str());
  // One text, with commas between, as texts in a list cannot be read.
  std::istringstream ratios(attributes.get<std::string>("output_ratio"));
  std::string text;
  for (size_t i = 0; i < size_.size(); ++i) {
    if (!std::getline(ratios, text, ',')) text.clear();
    ratio_.push_back(size_[i] > 0 ? 0 : number_of("output_ratio", text));
  }
}

Shape Fractional::output_shape(const Tensor& x, const Tensor& samples) const {
  const size_t rank = size_.size();
  if (x.rank() != rank + 2)
    refuse("an input of shape %s has %zu axes, and output_size %s needs %zu", spelled(x.shape).c_str(), x.rank(),
           spelled(size_).c_str(), rank + 2);
  const Shape& s = samples.shape;
  bool suits = s.size() == 3 && (s[2] == UNKNOWN || s[2] == int64_t(rank)) && s[0] != 0 && s[1] != 0;
  if (suits && per_plane_)
    suits = (s[0] == 1 || s[0] == UNKNOWN || s[0] >= x.shape[0]) &&
            (s[1] == 1 || s[1] == UNKNOWN || x.shape[1] == UNKNOWN || s[1] == x.shape[1]);
  if (!suits)
    refuse("samples of shape %s do not suit an input of shape %s", spelled(s).c_str(), spelled(x.shape).c_str());
  Shape shape(x.shape.begin(), x.shape.begin() + 2);
  for (size_t i = 0; i < rank; ++i) {
    const int64_t n = x.shape[i + 2];
    const int64_t o = size_[i] > 0 ? size_[i] : n == UNKNOWN ? UNKNOWN : whole(double(n) * ratio_[i]);
    const int64_t cells = o + std::max<int64_t>(kernel_[i], 1) - 1;
    if (n != UNKNOWN && (n > LIMIT || o < 1 || cells > n))
      refuse("the regions do not fit: spatial axis %zu has length %lld, and %lld outputs need at least %lld cells and "
             "one output", i, static_cast<long long>(n), static_cast<long long>(o), static_cast<long long>(cells));
    shape.push_back(o);
  }
  return shape;
}

Regions Fractional::regions(const Tensor& x, const Tensor& samples) const {
  const Shape y = output_shape(x, samples);
  const size_t rank = size_.size();
  const int64_t keys = samples.shape[1];
  const int64_t rows = per_plane_ ? std::min(samples.shape[0], x.shape[0]) : 1, columns = per_plane_ ? keys : 1;
  Regions regions(x.shape, y, rows * columns);
  regions.per_map = rows > 1 ? columns : 0;
  regions.per_channel = columns > 1 ? 1 : 0;
  for (int64_t set = 0; set < rows * columns; ++set)
    for (size_t axis = 0; axis < rank; ++axis)
      fill(regions.runs(set, axis), axis, x.shape[axis + 2], y[axis + 2],
           samples.as<double>() + set * int64_t(rank), keys);
  regions.close();
  return regions;
}

void Fractional::fill(Run* runs, size_t axis, int64_t n, int64_t o, const double* samples, int64_t keys) const {
  // Which of the samples is the axis's: torch has (width, height), but (depth, height, width).
  const size_t rank = size_.size(), column = rank == 2 ? 1 - axis : axis;
  if (rule_ == TORCH)
    return single_ ? start<float>(runs, n, o, kernel_[axis], samples[column])
                   : start<double>(runs, n, o, kernel_[axis], samples[column]);
  std::vector<double> own;
  for (int64_t i = 0; i < (rule_ == RANDOM ? keys : 1); ++i) own.push_back(samples[size_t(i) * rank + column]);
  for (double key : own)
    if (key != key) refuse("a sample is not a number");
  const std::vector<int64_t> borders = rule_ == RANDOM ? random(n, o, own) : pseudorandom(n, o, own[0]);
  for (int64_t i = 0; i < o; ++i) {
    const int64_t end = borders[size_t(i + 1)];
    runs[i] = {borders[size_t(i)], overlapping_ ? std::min(end + 1, n) : end};
  }
}

}  // namespace poolexport
