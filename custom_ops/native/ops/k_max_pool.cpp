// KMaxPool: the k largest cells of every sequence, in descending order or in the order in which they appear.
//
// Cells above all but k - 1 of those seen are kept as candidates. When there are too many, the k best of them stay.
#include <algorithm>

#include "core/window.h"

namespace poolexport {
namespace {

template <class C>
struct Candidate {
  C value;
  int64_t place;
};

template <class T>
struct Job {
  const T* x;
  int64_t length, k;
  bool by_position;
  T* y;
  Candidate<computed<T>>* scratch;
};

//: Cells that are compared with the least candidate at once.
constexpr int64_t PIECE = 64;

// Room for the candidates of one sequence.
int64_t room(int64_t k) { return 2 * k + PIECE; }

// Of equal cells the first is the better one.
struct Better {
  template <class C>
  bool operator()(const Candidate<C>& a, const Candidate<C>& b) const {
    return a.value > b.value || (a.value == b.value && a.place < b.place);
  }
};

struct Earlier {
  template <class C>
  bool operator()(const Candidate<C>& a, const Candidate<C>& b) const {
    return a.place < b.place;
  }
};

// Whether one of the cells is NaN, and whether one is above the bar.
template <class T, class C>
POOL_INLINE void glance(const T* x, int64_t count, C bar, bool& nan, bool& above) {
  int32_t nans = 0, aboves = 0;
  for (int64_t i = 0; i < count; ++i) {
    const C cell = widen(x[i]);
    nans |= cell != cell;
    aboves |= cell > bar;
  }
  nan = nans != 0;
  above = aboves != 0;
}

// False where a cell is NaN.
template <class T>
POOL_INLINE bool select(const Job<T>& job, const T* x) {
  using C = computed<T>;
  Candidate<C>* const best = job.scratch;
  int64_t found = 0;
  C bar = -C(__builtin_inf());
  for (int64_t start = 0; start < job.length; start += PIECE) {
    const int64_t count = std::min(PIECE, job.length - start);
    bool nan, above;
    glance(x + start, count, bar, nan, above);
    if (nan) return false;
    if (found >= job.k && !above) continue;
    for (int64_t i = start; i < start + count; ++i) {
      const C cell = widen(x[i]);
      if (found < job.k || cell > bar) best[found++] = {cell, i};
    }
    if (found < 2 * job.k) continue;
    std::nth_element(best, best + job.k - 1, best + found, Better());
    found = job.k;
    bar = best[job.k - 1].value;
  }
  if (found > job.k) std::nth_element(best, best + job.k - 1, best + found, Better());
  if (job.by_position)
    std::sort(best, best + job.k, Earlier());
  else
    std::sort(best, best + job.k, Better());
  return true;
}

template <class T>
POOL_INLINE void rows_of(const Job<T>& job, size_t first, size_t last) {
  using C = computed<T>;
  for (size_t row = first; row < last; ++row) {
    const bool numbers = select(job, job.x + int64_t(row) * job.length);
    T* y = job.y + int64_t(row) * job.k;
    for (int64_t i = 0; i < job.k; ++i) y[i] = narrow<T>(numbers ? job.scratch[i].value : C(__builtin_nan("")));
  }
}

POOL_FOR_EACH_ELEMENT(rows, Job)

struct KMaxPool final : Kernel {
  int64_t k;
  bool by_position;

  explicit KMaxPool(const Attributes& attributes)
      : k(attributes.get<int64_t>("k")), by_position(attributes.get<int64_t>("by_position") != 0) {
    if (k < 0) refuse("k must not be negative, and is %lld", static_cast<long long>(k));
  }

  std::vector<Shape> shapes(const std::vector<Tensor>& inputs) const override {
    Shape shape = inputs[0].shape;
    if (shape.empty()) refuse("a number has no axis to pool over");
    if (shape.back() != UNKNOWN && shape.back() < k)
      refuse("k is %lld, but the input of shape %s has only %lld locations", static_cast<long long>(k),
             spelled(shape).c_str(), static_cast<long long>(shape.back()));
    shape.back() = k;
    return {shape};
  }

  void compute(Call& call) const override {
    with_element(call.inputs[0].type, [&](auto element) {
      using T = decltype(element);
      const Tensor& x = call.inputs[0];
      const int64_t length = x.shape.back(), rows_there = int64_t(count(call.shapes[0])) / k;
      for_rows<Candidate<computed<T>>>(call, rows_there, size_t(room(k)), [&](size_t first, size_t last, auto* scratch) {
        rows({x.as<T>(), length, k, by_position, call.output<T>(), scratch}, first, last);
      });
    });
  }
};

}  // namespace

extern const Operator k_max_pool{"KMaxPool", {Type::SAME}, {Type::SAME}, create<KMaxPool>};

}  // namespace poolexport
