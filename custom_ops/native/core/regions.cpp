#include "core/regions.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "core/lanes.h"
#include "core/larger.h"
#include "core/window.h"

namespace poolexport {

Regions::Regions(const Shape& x, const Shape& y, int64_t sets)
    : channels(x[1]), planes(int64_t(count({y[0], y[1]}))), rank_(x.size() - 2), sets_(size_t(sets)) {
  for (size_t i = 0; i < 3; ++i) {
    const bool there = i + rank_ >= 3;
    length[i] = there ? x[i + rank_ - 1] : 1;
    output[i] = there ? y[i + rank_ - 1] : 1;
  }
  runs_.resize(count({sets, output[0] + output[1] + output[2]}), Run{0, 1});
}

Run* Regions::along(int64_t set, size_t axis) {
  int64_t place = set * (output[0] + output[1] + output[2]);
  for (size_t i = 0; i < axis; ++i) place += output[i];
  return runs_.data() + place;
}

void Regions::close(bool may_be_empty) {
  if (length[2] > std::numeric_limits<int32_t>::max())
    refuse("%lld cells are too many for the last axis", static_cast<long long>(length[2]));
  steps_.resize(count({int64_t(sets_.size()), 2, output[2]}));
  for (size_t s = 0; s < sets_.size(); ++s) {
    Set& set = sets_[s];
    for (size_t axis = 0; axis < 3; ++axis) {
      set.runs[axis] = along(int64_t(s), axis);
      for (int64_t i = 0; i < output[axis]; ++i) {
        const Run& run = set.runs[axis][i];
        if (run.first >= run.end && may_be_empty) continue;
        if (run.first >= run.end)
          refuse("region %lld of spatial axis %zu is empty", static_cast<long long>(i), axis + rank_ - 3);
        if (run.first < 0 || run.end > length[axis])
          refuse("region %lld of spatial axis %zu would hold cells %lld to %lld, and there are %lld",
                 static_cast<long long>(i), axis + rank_ - 3, static_cast<long long>(run.first),
                 static_cast<long long>(run.end - 1), static_cast<long long>(length[axis]));
      }
    }
    int64_t shortest = std::numeric_limits<int64_t>::max(), longest = 0;
    bool all = true;
    set.begin = length[2], set.end = 0, set.step = 1;
    for (int64_t i = 0; i < output[2]; ++i) {
      const Run& run = set.runs[2][i];
      const int64_t cells = run.end - run.first;
      all = all && cells > 0;
      if (cells <= 0) continue;
      set.begin = std::min(set.begin, run.first), set.end = std::max(set.end, run.end);
      shortest = std::min(shortest, cells), longest = std::max(longest, cells);
    }
    while (longest > 0 && set.step <= shortest / 2) set.step *= 2;
    set.two_steps = all && longest <= 2 * set.step;
    set.one_step = all && longest == set.step;
    int32_t* const first = steps_.data() + s * size_t(2 * output[2]);
    int32_t* const last = first + output[2];
    set.first = first, set.last = last;
    set.stride = output[2] > 1 ? set.runs[2][1].first - set.runs[2][0].first : 1;
    for (int64_t i = 0; i < output[2]; ++i) {
      const Run& run = set.runs[2][i];
      first[i] = run.first < run.end ? int32_t(run.first - set.begin) : 0;
      last[i] = run.first < run.end ? int32_t(run.end - set.step - set.begin) : 0;
      if (i > 0 && run.first - set.runs[2][i - 1].first != set.stride) set.stride = 0;
    }
  }
}

namespace {

//: Values of scratch for all tasks together, where 8 tasks do not need more.
constexpr size_t SCRATCH = size_t{1} << 22;

template <class T, class S>
struct Job {
  const Regions& regions;
  const T* x;
  T* y;
  int64_t* places;
  int64_t channels;  // of the output
  bool from_zero;
  double divisors[2];  // of the axes before the last, and of the last; 0 for the number of cells
  S* scratch;
};
template <class T>
using LargestJob = Job<T, computed<T>>;
template <class T>
using PlacesJob = Job<T, unsigned char>;
template <class T>
using MeansJob = Job<T, double>;

// A row of outputs: its plane and set of regions, and the runs of the axes before the last.
template <class T>
struct Row {
  const Regions::Set* set;
  const T* plane;
  Run depth, height;

  template <class S>
  POOL_INLINE Row(const Job<T, S>& job, int64_t index) {
    const Regions& r = job.regions;
    const int64_t rows = r.output[0] * r.output[1], n = index / rows / job.channels, c = index / rows % job.channels;
    set = &r.set(n, c);
    plane = job.x + r.plane(n, c) * r.plane_size();
    depth = set->runs[0][index % rows / r.output[1]];
    height = set->runs[1][index % r.output[1]];
  }
  POOL_INLINE int64_t size() const { return (depth.end - depth.first) * (height.end - height.first); }
  POOL_INLINE bool empty() const {
    return depth.end <= depth.first || height.end <= height.first || set->end <= set->begin;
  }
};

// Calls body(line, position) for all lines of cells that a row of outputs reduces, from the first column that it needs.
template <class T, class Body>
POOL_INLINE void for_lines(const Regions& r, const Row<T>& row, const Body& body) {
  for (int64_t d = row.depth.first; d < row.depth.end; ++d)
    for (int64_t h = row.height.first; h < row.height.end; ++h) {
      const int64_t position = (d * r.length[1] + h) * r.length[2] + row.set->begin;
      body(row.plane + position, position);
    }
}

template <bool FIRST, int N, class T, class C, class Fold>
POOL_INLINE void fold_some(const T* const* lines, C* __restrict to, int64_t width, const Fold& fold) {
  const T *a = lines[0], *b = lines[N > 1 ? 1 : 0], *c = lines[N > 2 ? 2 : 0], *d = lines[N > 3 ? 3 : 0];
  for (int64_t i = 0; i < width; ++i) {
    C value = C(widen(a[i]));
    if (!FIRST) value = fold(to[i], value);
    if (N > 1) value = fold(value, C(widen(b[i])));
    if (N > 2) value = fold(value, C(widen(c[i])));
    if (N > 3) value = fold(value, C(widen(d[i])));
    to[i] = value;
  }
}

// Folds the lines of a row into one, four at a time.
template <class T, class C, class Fold>
POOL_INLINE void fold_lines(const Regions& r, const Row<T>& row, C* to, const Fold& fold) {
  const T* lines[4];
  const int64_t width = row.set->end - row.set->begin;
  int64_t filled = 0, wanted = (row.size() - 1) % 4 + 1;
  bool first = true;
  for_lines(r, row, [&](const T* line, int64_t) __attribute__((always_inline)) {
    lines[filled] = line;
    if (++filled < wanted) return;
    if (!first)
      fold_some<false, 4>(lines, to, width, fold);
    else if (wanted == 1)
      fold_some<true, 1>(lines, to, width, fold);
    else if (wanted == 2)
      fold_some<true, 2>(lines, to, width, fold);
    else if (wanted == 3)
      fold_some<true, 3>(lines, to, width, fold);
    else
      fold_some<true, 4>(lines, to, width, fold);
    filled = 0, wanted = 4, first = false;
  });
}

// Every so manieth value.
template <class T, class C>
POOL_INLINE void every(int64_t stride, const C* __restrict from, T* __restrict to, int64_t count) {
  by_stride(stride, count, [&](int64_t i, int64_t at) __attribute__((always_inline)) { to[i] = narrow<T>(from[at]); });
}

template <class T>
POOL_INLINE void largest_of(const LargestJob<T>& job, size_t first, size_t last) {
  using C = computed<T>;
  const Regions& r = job.regions;
  for (int64_t index = int64_t(first); index < int64_t(last); ++index) {
    const Row<T> row(job, index);
    const Regions::Set& set = *row.set;
    T* const y = job.y + index * r.output[2];
    if (row.empty()) {
      for (int64_t j = 0; j < r.output[2]; ++j) y[j] = narrow<T>(C(0));
      continue;
    }
    C *best = job.scratch, *other = best + r.length[2];
    fold_lines(r, row, best, [](C a, C b) __attribute__((always_inline)) { return larger(a, b); });
    int64_t width = set.end - set.begin;
    if (job.from_zero)
      for (int64_t i = 0; i < width; ++i) best[i] = larger(best[i], C(0));
    for (int64_t step = 1; step < set.step; step *= 2) {
      width -= step;
      const C *from = best, *ahead = best + step;
      C* __restrict to = other;
      for (int64_t i = 0; i < width; ++i) to[i] = larger(from[i], ahead[i]);
      std::swap(best, other);
    }
    if (set.one_step && set.stride > 0) {
      every(set.stride, best + set.first[0], y, r.output[2]);
    } else if (set.one_step) {
      for (int64_t j = 0; j < r.output[2]; ++j) y[j] = narrow<T>(best[set.first[j]]);
    } else if (set.two_steps) {
      for (int64_t j = 0; j < r.output[2]; ++j) y[j] = narrow<T>(larger(best[set.first[j]], best[set.last[j]]));
    } else {
      for (int64_t j = 0; j < r.output[2]; ++j) {
        C value = best[set.last[j]];
        for (int64_t i = set.first[j]; i < set.last[j]; i += set.step) value = larger(value, best[i]);
        y[j] = narrow<T>(set.runs[2][j].first < set.runs[2][j].end ? value : C(0));
      }
    }
  }
}

POOL_FOR_EACH_ELEMENT(largest, LargestJob)

// A cell claims to be the largest of its region by its position, or by -1 - position where it is NaN. Of two cells that
// are equal, or of which one is NaN, the smaller claim wins: the first of equal cells, the last NaN.
template <class C, class I>
POOL_INLINE void contest(C& best, I& claim, C rival, I claims) {
  // By masks: a branch would be mispredicted.
  using Bits = std::conditional_t<sizeof(C) == 4, uint32_t, uint64_t>;
  const bool wins = (rival > best) | (!(rival < best) & (claims < claim));
  const Bits mine = bits_as<Bits>(best), its = bits_as<Bits>(rival);
  best = bits_as<C>(Bits(mine ^ ((mine ^ its) & -Bits(wins))));
  claim ^= (claim ^ claims) & -I(wins);
}

template <class I, class T>
POOL_INLINE void places_in(const PlacesJob<T>& job, size_t first, size_t last) {
  using C = computed<T>;
  const Regions& r = job.regions;
  for (int64_t index = int64_t(first); index < int64_t(last); ++index) {
    const Row<T> row(job, index);
    const Regions::Set& set = *row.set;
    int64_t width = set.end - set.begin;
    C *best = reinterpret_cast<C*>(job.scratch), *other = best + r.length[2];
    I *claim = reinterpret_cast<I*>(job.scratch + 16 * r.length[2]), *others = claim + r.length[2];
    bool fresh = true;
    for_lines(r, row, [&](const T* line, int64_t position) __attribute__((always_inline)) {
      C* __restrict b = best;
      I* __restrict c = claim;
      const I begin = I(position);
      for (int64_t i = 0; i < width; ++i) {
        const C value = widen(line[i]);
        const I at = begin + I(i), claims = value != value ? -1 - at : at;
        C top = fresh ? value : b[i];
        I holds = fresh ? claims : c[i];
        contest(top, holds, value, claims);
        b[i] = top, c[i] = holds;
      }
      fresh = false;
    });
    for (int64_t step = 1; step < set.step; step *= 2) {
      width -= step;
      const C *from = best, *ahead = best + step;
      const I *claims = claim, *claims_ahead = claim + step;
      C* __restrict b = other;
      I* __restrict c = others;
      for (int64_t i = 0; i < width; ++i) {
        C top = from[i];
        I holds = claims[i];
        contest(top, holds, ahead[i], claims_ahead[i]);
        b[i] = top, c[i] = holds;
      }
      std::swap(best, other), std::swap(claim, others);
    }
    T* const y = job.y + index * r.output[2];
    int64_t* const places = job.places + index * r.output[2];
    for (int64_t j = 0; j < r.output[2]; ++j) {
      C top = best[set.last[j]];
      I holds = claim[set.last[j]];
      for (int64_t i = set.first[j]; i < set.last[j]; i += set.step) contest(top, holds, best[i], claim[i]);
      y[j] = narrow<T>(top);
      places[j] = holds < 0 ? -1 - int64_t(holds) : int64_t(holds);
    }
  }
}

template <class T>
POOL_INLINE void places_of(const PlacesJob<T>& job, size_t first, size_t last) {
  // Positions as wide as the values make the loops vector code.
  if (sizeof(computed<T>) == 4 && job.regions.plane_size() <= std::numeric_limits<int32_t>::max())
    places_in<int32_t>(job, first, last);
  else
    places_in<int64_t>(job, first, last);
}

POOL_FOR_EACH_ELEMENT(places, PlacesJob)

template <class T>
POOL_INLINE void means_of(const MeansJob<T>& job, size_t first, size_t last) {
  const Regions& r = job.regions;
  for (int64_t index = int64_t(first); index < int64_t(last); ++index) {
    const Row<T> row(job, index);
    const Regions::Set& set = *row.set;
    T* const y = job.y + index * r.output[2];
    if (row.empty()) {
      for (int64_t j = 0; j < r.output[2]; ++j) y[j] = narrow<T>(computed<T>(0));
      continue;
    }
    double* const sums = job.scratch;
    fold_lines(r, row, sums, [](double a, double b) __attribute__((always_inline)) { return a + b; });
    double before = job.divisors[0] > 0 ? job.divisors[0] : double(row.size());
    if (sizeof(T) == 8) {
      // Sums of doubles may leave the range, so every axis is divided by itself.
      for (int64_t i = 0; i < set.end - set.begin; ++i) sums[i] /= before;
      before = 1;
    }
    for (int64_t j = 0; j < r.output[2]; ++j) {
      const Run run = set.runs[2][j];
      const int64_t cells = run.end - run.first;
      const double divisor = before * (job.divisors[1] > 0 ? job.divisors[1] : double(cells));
      y[j] = narrow<T>(computed<T>(cells > 0 ? sum_in_double(sums + (run.first - set.begin), cells) / divisor : 0.0));
    }
  }
}

POOL_FOR_EACH_ELEMENT(means, MeansJob)

template <class Space, class T, class Loop>
void run(Call& call, const Regions& regions, size_t scratch, const std::vector<int64_t>& divisors, T, const Loop& loop) {
  Job<T, Space> whole{regions, call.inputs[0].as<T>(), call.output<T>(), nullptr, call.shapes[0][1], false, {0, 0}, nullptr};
  if (call.outputs.size() > 1) whole.places = call.output<int64_t>(1);
  for (size_t i = 0; i < divisors.size(); ++i) {
    double& divisor = whole.divisors[i + 1 == divisors.size()];
    divisor = double(divisors[i]) * (divisor > 0 ? divisor : 1);
  }
  for_rows<Space>(
      call, regions.rows(), scratch,
      [&](size_t first, size_t last, Space* space) {
        Job<T, Space> job = whole;
        job.scratch = space;
        loop(job, first, last);
      },
      std::min(TASKS, std::max<size_t>(8, SCRATCH / scratch)));
}

}  // namespace

void largest_of_regions(Call& call, const Regions& regions, bool from_zero) {
  with_element(call.inputs[0].type, [&](auto element) {
    run<computed<decltype(element)>>(call, regions, size_t(2 * regions.length[2]), {}, element,
                                     [&](auto& job, size_t first, size_t last) {
                                       job.from_zero = from_zero;
                                       largest(job, first, last);
                                     });
  });
}

void first_largest_of_regions(Call& call, const Regions& regions) {
  with_element(call.inputs[0].type, [&](auto element) {
    run<unsigned char>(call, regions, size_t(32 * regions.length[2]), {}, element,
                       [](auto& job, size_t first, size_t last) { places(job, first, last); });
  });
}

void means_of_regions(Call& call, const Regions& regions, const std::vector<int64_t>& divisors) {
  with_element(call.inputs[0].type, [&](auto element) {
    run<double>(call, regions, size_t(regions.length[2]), divisors, element,
                [](auto& job, size_t first, size_t last) { means(job, first, last); });
  });
}

}  // namespace poolexport
