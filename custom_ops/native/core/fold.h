// Windows joined in two steps: first their lines, column by column, and then the columns of every window.
//
// Neighbouring windows share columns, so each cell is read once a line; both steps are vector code.
#pragma once

#include "core/larger.h"
#include "core/window.h"

namespace poolexport {

//: Outputs in a block that is folded.
constexpr int64_t WIDE = 256;

// Values of scratch that fold needs.
inline size_t fold_scratch(const Geometry& g) {
  const int64_t reached = (WIDE - 1) * g.stride[2] + (g.kernel[2] - 1) * g.dilation[2] + 1;
  return size_t(std::min(g.length[2], reached));
}

namespace detail {

template <class C, class Join>
POOL_INLINE void join_strided(const C* __restrict line, int64_t stride, C* __restrict to, int64_t count, const Join& join) {
  by_stride(stride, count,
            [&](int64_t i, int64_t at) __attribute__((always_inline)) { to[i] = join(to[i], line[at]); });
}

// Two or three neighbouring columns, all on the map.
template <class C, class Join>
POOL_INLINE void join_columns(const C* __restrict line, int64_t stride, bool three, C* __restrict to, int64_t count,
                              const Join& join) {
  if (three)
    for (int64_t i = 0; i < count; ++i) to[i] = join(join(line[stride * i], line[stride * i + 1]), line[stride * i + 2]);
  else
    for (int64_t i = 0; i < count; ++i) to[i] = join(line[stride * i], line[stride * i + 1]);
}

// One output after the other; line begins with the map's column `from`.
template <class C, class Join>
POOL_INLINE void join_border(const Geometry& g, const Block& b, int64_t first, int64_t last, C empty, const C* line,
                             int64_t from, C* to, const Join& join) {
  for (int64_t i = first; i < last; ++i) {
    C joined = empty;
    for (int64_t kw = 0; kw < g.kernel[2]; ++kw) {
      const int64_t w = (b.column + i) * g.stride[2] - g.begin[2] + kw * g.dilation[2];
      if (w >= 0 && w < g.length[2]) joined = join(joined, line[w - from]);
    }
    to[i] = joined;
  }
}

}  // namespace detail

// to[i] = join of the values of all cells of window i that lie on the map, `empty` where there are none. value(offset)
// is that of the cell at an offset in the plane; join is associative and commutative but for rounding.
template <class C, class Value, class Join>
POOL_INLINE void fold(const Geometry& g, const Block& b, C empty, C* __restrict line, C* __restrict to,
                      const Value& value, const Join& join) {
  const int64_t last = b.width - 1, taps = g.kernel[2];
  const int64_t begin = b.column * g.stride[2] - g.begin[2];
  const int64_t end = begin + last * g.stride[2] + (taps - 1) * g.dilation[2] + 1;
  const int64_t from = begin < 0 ? 0 : begin, count = (end < g.length[2] ? end : g.length[2]) - from;
  bool fresh = true;
  // Two or three lines on the map are joined in one go.
  const int64_t depth = b.depth * g.stride[0] - g.begin[0];
  const int64_t top = b.row * g.stride[1] - g.begin[1], bottom = top + (g.kernel[1] - 1) * g.dilation[1];
  const bool inside = g.kernel[0] == 1 && depth >= 0 && depth < g.length[0] && top >= 0 && bottom < g.length[1];
  if (inside && (g.kernel[1] == 2 || g.kernel[1] == 3)) {
    const int64_t first = (depth * g.length[1] + top) * g.length[2] + from, step = g.dilation[1] * g.length[2];
    fresh = false;
    if (g.kernel[1] == 2)
      for (int64_t i = 0; i < count; ++i) line[i] = join(value(first + i), value(first + step + i));
    else
      for (int64_t i = 0; i < count; ++i)
        line[i] = join(join(value(first + i), value(first + step + i)), value(first + 2 * step + i));
  } else {
    for_lines(g, b, [&](bool there, int64_t offset) __attribute__((always_inline)) {
      if (!there) return;
      if (fresh)
        for (int64_t i = 0; i < count; ++i) line[i] = value(offset + from + i);
      else
        for (int64_t i = 0; i < count; ++i) line[i] = join(line[i], value(offset + from + i));
      fresh = false;
    });
  }
  const Reach left = reach(g, b, 0), right = reach(g, b, taps - 1);
  if (!fresh && (taps == 2 || taps == 3) && g.dilation[2] == 1 && g.stride[2] <= 2 && left.low < right.high) {
    // From left.low up to right.high all taps are on the map; few outputs lie on either side.
    const C* const inner = line + (left.column + left.low * g.stride[2] - from);
    const int64_t inside = right.high - left.low;
    if (g.stride[2] == 1)
      detail::join_columns(inner, 1, taps == 3, to + left.low, inside, join);
    else
      detail::join_columns(inner, 2, taps == 3, to + left.low, inside, join);
    detail::join_border(g, b, 0, left.low, empty, line, from, to, join);
    detail::join_border(g, b, right.high, b.width, empty, line, from, to, join);
    return;
  }
  for (int64_t i = 0; i < b.width; ++i) to[i] = empty;
  if (fresh) return;
  for (int64_t kw = 0; kw < taps; ++kw) {
    const Reach r = reach(g, b, kw);
    if (r.low < r.high)
      detail::join_strided(line + (r.column + r.low * g.stride[2] - from), g.stride[2], to + r.low, r.high - r.low,
                           join);
  }
}

struct Larger {
  template <class C>
  POOL_INLINE C operator()(C a, C b) const {
    return larger(a, b);
  }
};

struct Sum {
  template <class C>
  POOL_INLINE C operator()(C a, C b) const {
    return a + b;
  }
};

}  // namespace poolexport
