// CompactBilinear: the products of all pairs of channels, each added with its signs to the bin that its hashes name.
//
// Channels come in the order of their hashes: the pairs of one channel of x fall into bins one after the other, and those
// of the next channel meet nearly the same channels of y in a run of bins.
#include <numeric>

#include "core/convert.h"
#include "core/gemm.h"
#include "core/lanes.h"
#include "core/spread.h"
#include "core/square.h"

namespace poolexport {
namespace {

//: Places, of all samples, whose bins lie side by side.
constexpr int64_t SIDE = 8;
//: Numbers in a run of bins, which the first cache holds.
constexpr int64_t RUN = 4096;
//: Bytes of bins, or of products, at a time, if more than one piece of them is needed.
constexpr int64_t ROOM = int64_t{1} << 25;

// Hashes, factors, and channels in the order of their hashes.
struct End {
  Shape bins, channels;
  std::vector<double> signs;

  End(const Tensor& hash, const Tensor& sign, int64_t d) : bins(count(hash.shape)), channels(bins.size()) {
    Shape all(hash.as<int64_t>(), hash.as<int64_t>() + bins.size());
    for (int64_t& bin : all) bin = (bin % d + d) % d;
    std::iota(channels.begin(), channels.end(), 0);
    std::stable_sort(channels.begin(), channels.end(), [&](int64_t a, int64_t b) { return all[a] < all[b]; });
    const std::vector<double> unsorted = doubles(sign);
    for (size_t i = 0; i < bins.size(); ++i) {
      bins[i] = all[size_t(channels[i])];
      signs.push_back(unsorted[size_t(channels[i])]);
    }
  }
  int64_t size() const { return int64_t(bins.size()); }
};

// Adds the products of one sample's pairs, (C, D), to its bins.
void add_pairs(const double* products, const End& x, const End& y, int64_t d, double* z) {
  std::fill(z, z + d, 0.0);
  for (int64_t i = 0; i < x.size(); ++i) {
    const double* row = products + x.channels[size_t(i)] * y.size();
    const double sign = x.signs[size_t(i)];
    for (int64_t j = 0; j < y.size(); ++j) {
      int64_t bin = x.bins[size_t(i)] + y.bins[size_t(j)];
      bin -= bin >= d ? d : 0;
      z[bin] += sign * y.signs[size_t(j)] * row[y.channels[size_t(j)]];
    }
  }
}

struct Places {
  const double *a, *b;  // (C, side), and (D, side) twice
  const int64_t *first, *second;  // bins of C channels, and of D channels less d and as they are
  int64_t c, e;
  int64_t* next;  // of every channel of x: which of `second` comes next
  double* z;      // a run of bins, (run, side)
};

// Adds the products of one channel of x, whose bins begin at z, and the channels of y from `low` up to `high`.
template <int64_t side>
POOL_INLINE void add_products(const Places& job, const double* from, int64_t low, int64_t high, double* z) {
  const double* const b = job.b;
  const int64_t* const second = job.second;
  if constexpr (side == 1) {
    const double a = *from;
#pragma GCC unroll 4
    for (int64_t j = low; j < high; ++j) z[second[j]] += a * b[j];
  } else {
    constexpr int64_t width = Lanes<double>::count;
    lanes<double> a[side / width];
    for (int64_t k = 0; k < side / width; ++k) load(a[k], from + k * width);
    for (int64_t j = low; j < high; ++j) {
      double* const bin = z + second[j] * side;
#pragma GCC unroll 4
      for (int64_t k = 0; k < side / width; ++k) {
        lanes<double> right, sums;
        load(right, b + j * side + k * width);
        load(sums, static_cast<const double*>(bin + k * width));
        store(bin + k * width, sums + a[k] * right);
      }
    }
  }
}

// Adds the pairs that fall into the bins from `begin` up to `end`.
template <int64_t side>
POOL_INLINE void add_places(const Places& job, int64_t begin, int64_t end) {
  std::fill(job.z, job.z + (end - begin) * side, 0.0);
  const int64_t most = 2 * job.e;
  int64_t high = 0;
  // From the last, whose pairs end first.
  for (int64_t i = job.c - 1; i >= 0; --i) {
    high = std::max(high, job.next[i]);
    while (high < most && job.second[high] < end - job.first[i]) ++high;
    add_products<side>(job, job.a + i * side, job.next[i], high, job.z + (job.first[i] - begin) * side);
    job.next[i] = high;
  }
}

POOL_TARGETS void add_side(const Places& job, int64_t begin, int64_t end) { add_places<SIDE>(job, begin, end); }
POOL_TARGETS void add_one(const Places& job, int64_t begin, int64_t end) { add_places<1>(job, begin, end); }

// Places from `first` on of (N, C, L), signed, as (C, side).
template <class T>
void lay_out(const T* x, const End& end, int64_t locations, int64_t first, int64_t there, int64_t side, double* to) {
  for (int64_t k = 0; k < there; ++k) {
    const int64_t sample = (first + k) / locations, location = (first + k) % locations;
    const T* from = x + sample * end.size() * locations + location;
    for (int64_t i = 0; i < end.size(); ++i)
      to[i * side + k] = double(widen(from[end.channels[size_t(i)] * locations])) * end.signs[size_t(i)];
  }
}

struct CompactBilinear final : Kernel {
  int64_t d;
  bool pooled;

  explicit CompactBilinear(const Attributes& attributes)
      : d(attributes.get<int64_t>("output_dim")), pooled(attributes.get<int64_t>("pooled", 1) != 0) {
    if (d < 1 || d > int64_t{1} << 40)
      refuse("output_dim is %lld, and must be a number of bins", static_cast<long long>(d));
  }

  std::vector<Shape> shapes(const std::vector<Tensor>& inputs) const override {
    const Shape &x = inputs[0].shape, &y = inputs[1].shape;
    require_sequences(x);
    require_sequences(y);
    const auto differ = [](int64_t a, int64_t b) { return a != b && a != UNKNOWN && b != UNKNOWN; };
    if (differ(x[0], y[0]) || differ(x[2], y[2]))
      refuse("x and y need the same samples and locations, and not the shapes %s and %s", spelled(x).c_str(),
             spelled(y).c_str());
    for (size_t i : {2, 3, 4, 5}) {
      const Shape& shape = inputs[i].shape;
      const int64_t channels = i < 4 ? x[1] : y[1];
      if (shape.size() != 1 || differ(shape[0], channels))
        refuse("a hash and a sign for each of %lld channels are needed, and not numbers of shape %s",
               static_cast<long long>(channels), spelled(shape).c_str());
    }
    return {pooled ? Shape{x[0], d} : Shape{x[0], d, x[2]}};
  }

  void compute(Call& call) const override {
    const End first(call.inputs[2], call.inputs[3], d), second(call.inputs[4], call.inputs[5], d);
    with_element(call.inputs[0].type, [&](auto element) {
      using T = decltype(element);
      if (call.inputs[1].type != call.inputs[0].type)
        refuse("y is of type %d, and x of type %d", int(call.inputs[1].type), int(call.inputs[0].type));
      const T *x = call.inputs[0].as<T>(), *y = call.inputs[1].as<T>();
      if (pooled && call.inputs[0].shape[2] != 1)
        over_samples<T>(call, x, y, first, second);
      else
        over_places<T>(call, x, y, first, second);
    });
  }

 private:
  // Pieces of `bytes` that fit at a time, at least one and at most so many as are needed.
  static int64_t fitting(int64_t bytes, int64_t needed) {
    return std::clamp<int64_t>(ROOM / std::max<int64_t>(1, bytes), 1, needed);
  }

  template <class T>
  void over_samples(const Call& call, const T* x, const T* y, const End& first, const End& second) const {
    const int64_t batch = call.inputs[0].shape[0], l = call.inputs[0].shape[2], c = first.size(), e = second.size();
    const int64_t chunk = fitting(c * e * 8, batch), tasks = fitting(d * 8, MOST_TASKS);
    const std::unique_ptr<double[]> products(new double[size_t(chunk * c * e)]), bins(new double[size_t(tasks * d)]);
    for (int64_t begin = 0; begin < batch; begin += chunk) {
      const int64_t some = std::min(chunk, batch - begin);
      multiply_pairs(call, x + begin * c * l, y + begin * e * l, some, c, e, l, products.get());
      spread(call, some, [&](int64_t sample, int64_t task) {
        double* const z = bins.get() + task * d;
        add_pairs(products.get() + sample * c * e, first, second, d, z);
        T* const to = call.output<T>() + (begin + sample) * d;
        for (int64_t bin = 0; bin < d; ++bin) to[bin] = narrow<T>(computed<T>(z[bin]));
      }, tasks);
    }
  }
  template <class T>
  static void multiply_pairs(const Call& call, const T* x, const T* y, int64_t batch, int64_t c, int64_t e, int64_t l,
                             double* to) {
    const bool same = x == y && c == e;
    multiply<double>(call, Product<T, double>{batch, c, e, l, dense(x, c, l), dense(y, e, l).turned(), to, same});
  }

  template <class T>
  void over_places(const Call& call, const T* x, const T* y, const End& first, const End& second) const {
    const int64_t l = call.inputs[0].shape[2], places = call.inputs[0].shape[0] * l;
    const int64_t side = places < SIDE / 2 ? 1 : SIDE, pieces = (places + side - 1) / side, run = RUN / side;
    const int64_t channels = first.size() + 2 * second.size(), size = (run + channels) * side;
    const int64_t tasks = fitting(size * 8, std::min(MOST_TASKS, pieces));
    const std::unique_ptr<double[]> room(new double[size_t(tasks * size)]);
    const std::unique_ptr<int64_t[]> nexts(new int64_t[size_t(tasks * first.size())]);
    Shape bins = second.bins, starts;
    for (int64_t& bin : bins) bin -= d;
    bins.insert(bins.end(), second.bins.begin(), second.bins.end());
    for (int64_t bin : first.bins) starts.push_back(std::lower_bound(bins.begin(), bins.end(), -bin) - bins.begin());
    spread(call, pieces, [&](int64_t piece, int64_t task) {
      const int64_t begin = piece * side, there = std::min(side, places - begin);
      double *const z = room.get() + task * size, *const a = z + run * side, *const b = a + first.size() * side;
      int64_t* const next = nexts.get() + task * first.size();
      std::copy(starts.begin(), starts.end(), next);
      double* const again = b + second.size() * side;
      if (there < side) std::fill(a, again, 0.0);
      lay_out(x, first, l, begin, there, side, a);
      lay_out(y, second, l, begin, there, side, b);
      std::copy(b, again, again);
      const Places job{a, b, first.bins.data(), bins.data(), first.size(), second.size(), next, z};
      T* to[SIDE];
      for (int64_t k = 0; k < there; ++k) to[k] = call.output<T>() + (begin + k) / l * d * l + (begin + k) % l;
      for (int64_t bin = 0; bin < d; bin += run) {
        const int64_t end = std::min(d, bin + run);
        side == 1 ? add_one(job, bin, end) : add_side(job, bin, end);
        for (int64_t i = bin; i < end; ++i)
          for (int64_t k = 0; k < there; ++k) to[k][i * l] = narrow<T>(computed<T>(z[(i - bin) * side + k]));
      }
    }, tasks);
  }
};

}  // namespace

extern const Operator compact_bilinear{"CompactBilinear",
                                       {Type::SAME, Type::ANY, Type::INT64, Type::ANY, Type::INT64, Type::ANY},
                                       {Type::SAME},
                                       create<CompactBilinear>};

}  // namespace poolexport
