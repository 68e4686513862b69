// QueryPool: every cell of a grid looks at four points around its centre, interpolated between cells of the map.
#include <cmath>
#include <cstring>

#include "core/larger.h"
#include "core/number.h"
#include "core/window.h"

namespace poolexport {
namespace {

// A point on an axis: between the cells low and high, the share of high.
template <class C>
struct Points {
  std::vector<int32_t> low, high;
  std::vector<C> share;
  bool whole = true;   // no share but 0
  int64_t stride = 0;  // from one point to the next, where that is the same everywhere and points are whole
};

template <class T>
struct Job {
  using C = computed<T>;
  const T* x;
  T* y;
  const Points<C>* rows;  // two, as of the columns
  const Points<C>* columns;
  int64_t height, width, output_height, output_width;
  bool average;
  C* scratch;
};

// A high cell of share 0 adds nothing, whatever it holds.
template <class C>
POOL_INLINE C between(C low, C high, C share) {
  const C mixed = low * (1 - share) + high * share;
  return share == 0 ? low : mixed;
}

// Whole points of a line of cells, side by side.
template <class C>
POOL_INLINE void pick(const C* __restrict line, const Points<C>& p, int64_t count, C* __restrict to) {
  const int32_t* low = p.low.data();
  if (p.stride > 0)
    detail::strided(line + low[0], p.stride, to, count);
  else
    for (int64_t i = 0; i < count; ++i) to[i] = line[low[i]];
}

template <class C>
struct Quads {
  typedef C type __attribute__((vector_size(4 * sizeof(C))));
};

// The points of both lines at a column, twice: behind each other, cells of the upper line and of the lower one alternate.
// One vector holds all that a point lies between, which is quicker than gathering it from two lines for several points.
template <class C>
POOL_INLINE void at_column(const C* pairs, const Points<C>& p, size_t i, typename Quads<C>::type& to) {
  typename Quads<C>::type cells;
  std::memcpy(&cells, pairs + 2 * p.low[i], sizeof cells);
  const C share = p.share[i];
  to = __builtin_shufflevector(cells, cells, 0, 1, 0, 1);
  if (share != 0) to = to * (1 - share) + __builtin_shufflevector(cells, cells, 2, 3, 2, 3) * share;
}

// What four numbers reduce to.
template <class C>
POOL_INLINE C reduced(bool average, C a, C b, C c, C d) {
  return average ? C(0.25) * (((a + b) + c) + d) : larger(larger(a, b), larger(c, d));
}

template <class T>
POOL_INLINE void lines_of(const Job<T>& job, size_t first, size_t last) {
  using C = computed<T>;
  const int64_t width = job.width, count = job.output_width;
  const Points<C> &left = job.columns[0], &right = job.columns[1];
  // Both lines, one after the other or cell by cell; behind the last cells there may be any.
  C *const lines = job.scratch, *const points = lines + 2 * width + 2;
  for (int64_t index = int64_t(first); index < int64_t(last); ++index) {
    const size_t i = size_t(index % job.output_height);
    const T* plane = job.x + index / job.output_height * job.height * width;
    const Points<C> &above = job.rows[0], &below = job.rows[1];
    const T *a = plane + above.low[i] * width, *b = plane + above.high[i] * width;
    const T *c = plane + below.low[i] * width, *d = plane + below.high[i] * width;
    const C s = above.share[i], t = below.share[i];
    const auto upper = [&](int64_t k) __attribute__((always_inline)) { return between(C(widen(a[k])), C(widen(b[k])), s); };
    const auto lower = [&](int64_t k) __attribute__((always_inline)) { return between(C(widen(c[k])), C(widen(d[k])), t); };
    T* const y = job.y + index * count;
    if (!left.whole || !right.whole) {
      for (int64_t k = 0; k < width; ++k) lines[2 * k] = upper(k), lines[2 * k + 1] = lower(k);
      for (int64_t k = 0; k < count; ++k) {
        typename Quads<C>::type low, high;
        at_column(lines, left, size_t(k), low);
        at_column(lines, right, size_t(k), high);
        const auto four = __builtin_shufflevector(low, high, 0, 4, 1, 5);
        std::memcpy(points + 4 * k, &four, sizeof four);
      }
      for (int64_t k = 0; k < count; ++k) {
        const C* p = points + 4 * k;
        y[k] = narrow<T>(reduced(job.average, p[0], p[1], p[2], p[3]));
      }
    } else if (!job.average) {
      // Cells are compared, and not mixed: lines first, then points.
      for (int64_t k = 0; k < width; ++k) lines[k] = larger(upper(k), lower(k));
      pick(lines, left, count, points);
      pick(lines, right, count, points + count);
      for (int64_t k = 0; k < count; ++k) y[k] = narrow<T>(larger(points[k], points[k + count]));
    } else {
      for (int64_t k = 0; k < width; ++k) lines[k] = upper(k), lines[width + k] = lower(k);
      for (int side = 0; side < 2; ++side)
        for (int line = 0; line < 2; ++line)
          pick(lines + line * width, job.columns[side], count, points + (2 * line + side) * count);
      for (int64_t k = 0; k < count; ++k) {
        const C* p = points + k;
        y[k] = narrow<T>(reduced(true, p[0], p[count], p[2 * count], p[3 * count]));
      }
    }
  }
}

POOL_FOR_EACH_ELEMENT(lines, Job)

struct QueryPool final : Kernel {
  bool relative, average;

  explicit QueryPool(const Attributes& attributes) : relative(attributes.get<int64_t>("relative", 1) != 0) {
    const std::string reduce = attributes.get<std::string>("reduce", "max");
    if (reduce != "max" && reduce != "average") refuse("reduce must be max or average, not '%s'", reduce.c_str());
    average = reduce == "average";
  }

  std::vector<Shape> shapes(const std::vector<Tensor>& inputs) const override {
    const Shape& x = inputs[0].shape;
    if (x.size() != 4) refuse("an input of shape %s has %zu axes, and 4 are needed", spelled(x).c_str(), x.size());
    for (size_t i : {1, 2})
      if (inputs[i].rank() != 1 || (inputs[i].shape[0] != 2 && inputs[i].shape[0] != UNKNOWN))
        refuse("%s must have shape (2), not %s", i == 1 ? "size" : "offset", spelled(inputs[i].shape).c_str());
    if (inputs[1].data == nullptr) return {};
    Shape y(x.begin(), x.begin() + 2);
    for (size_t axis : {0, 1}) {
      const double size = inputs[1].as<double>()[axis];
      if (!(std::fabs(size) < 0x1p31)) refuse("the size of the grid is %g", size);
      y.push_back(size < 1 ? 0 : int64_t(size));
    }
    if (count(y) > 0 && (x[2] < 1 || x[3] < 1 || x[2] >= (int64_t{1} << 31) || x[3] >= (int64_t{1} << 31)))
      refuse("a grid cannot be laid over an input of shape %s", spelled(x).c_str());
    return {y};
  }

  void compute(Call& call) const override {
    const Shape &x = call.inputs[0].shape, &y = call.shapes[0];
    const double *size = call.inputs[1].as<double>(), *offset = call.inputs[2].as<double>();
    with_element(call.inputs[0].type, [&](auto element) {
      using T = decltype(element);
      using C = computed<T>;
      Points<C> points[2][2];
      for (size_t axis : {0, 1})
        for (int side : {0, 1})
          points[axis][side] = place<T>(x[axis + 2], y[axis + 2], size[axis], side ? offset[axis] : -offset[axis]);
      Job<T> whole{call.inputs[0].as<T>(), call.output<T>(), points[0], points[1], x[2], x[3], y[2], y[3], average,
                   nullptr};
      for_rows<C>(call, y[0] * y[1] * y[2], size_t(2 * x[3] + 2 + 4 * y[3]), [&](size_t first, size_t last, C* scratch) {
        Job<T> job = whole;
        job.scratch = scratch;
        lines(job, first, last);
      });
    });
  }

  // One side's points of all cells along an axis of length n, in float64.
  template <class T>
  Points<computed<T>> place(int64_t n, int64_t cells, double s, double c) const {
    using C = computed<T>;
    Points<C> points;
    const double length = double(n), shift = rounded(0.5 * s);
    for (int64_t i = 0; i < cells; ++i) {
      const double middle = double(i) + 0.5;
      double at = relative ? (rounded((middle + c) * length) - shift) / s
                           : rounded((rounded(middle * length) - shift) / s) + c;
      if (at != at) refuse("an offset is not a number");
      at = at > 0 ? at : 0;
      at = at < length - 1 ? at : length - 1;
      const double below = std::floor(at);
      points.low.push_back(int32_t(below));
      points.high.push_back(int32_t(below + 1 < length ? below + 1 : below));
      // The share has the type of the map, in which it may be 0 or 1.
      points.share.push_back(widen(narrow<T>(C(at - below))));
      points.whole = points.whole && points.share.back() == 0;
    }
    points.stride = cells > 1 ? points.low[1] - points.low[0] : 1;
    for (size_t i = 1; i < size_t(cells); ++i)
      if (points.low[i] - points.low[i - 1] != points.stride) points.stride = 0;
    if (!points.whole) points.stride = 0;
    return points;
  }
};

}  // namespace

extern const Operator query_pool{
    "QueryPool", {Type::SAME, Type::DOUBLE, Type::DOUBLE}, {Type::SAME}, create<QueryPool>};

}  // namespace poolexport
