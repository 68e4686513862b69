// Windows joined in two steps: first their lines, column by column, and then the columns of every window.
//
// Neighbouring windows share columns, so each cell is read once a line; both steps are vector code.
#pragma once

#include "core/larger.h"
#include "core/tile.h"

namespace poolexport {

namespace detail {

// The join of the lines of the windows of a row, in `line`: `count` columns from column `from` of the map on.
template <class C, class Value, class Join>
POOL_INLINE void join_lines(const Geometry& g, const Block& b, int64_t from, int64_t count, C empty,
                            C* __restrict line, const Value& value, const Join& join) {
  const int64_t depth = b.depth * g.stride[0] - g.begin[0];
  const int64_t top = b.row * g.stride[1] - g.begin[1], bottom = top + (g.kernel[1] - 1) * g.dilation[1];
  const bool inside = g.kernel[0] == 1 && depth >= 0 && depth < g.length[0] && top >= 0 && bottom < g.length[1];
  // Two or three lines on the map are joined in one go.
  if (inside && (g.kernel[1] == 2 || g.kernel[1] == 3)) {
    const int64_t first = (depth * g.length[1] + top) * g.length[2] + from, step = g.dilation[1] * g.length[2];
    if (g.kernel[1] == 2)
      for (int64_t i = 0; i < count; ++i) line[i] = join(value(first + i), value(first + step + i));
    else
      for (int64_t i = 0; i < count; ++i)
        line[i] = join(join(value(first + i), value(first + step + i)), value(first + 2 * step + i));
    return;
  }
  bool fresh = true;
  for_lines(g, b, [&](bool there, int64_t offset) __attribute__((always_inline)) {
    if (!there) return;
    if (fresh)
      for (int64_t i = 0; i < count; ++i) line[i] = value(offset + from + i);
    else
      for (int64_t i = 0; i < count; ++i) line[i] = join(line[i], value(offset + from + i));
    fresh = false;
  });
  for (int64_t i = 0; fresh && i < count; ++i) line[i] = empty;
}

// The join of `taps` columns, `gap` apart, that begin at every stride-th cell of line.
template <class C, class Join>
POOL_INLINE void join_columns(const C* __restrict line, int64_t stride, int64_t taps, int64_t gap, C* __restrict to,
                              int64_t count, const Join& join) {
  if (taps == 2 && stride <= 2) {
    by_stride(stride, count, [&](int64_t i, int64_t at) __attribute__((always_inline)) {
      to[i] = join(line[at], line[at + gap]);
    });
  } else if (taps == 3 && stride <= 2) {
    by_stride(stride, count, [&](int64_t i, int64_t at) __attribute__((always_inline)) {
      to[i] = join(join(line[at], line[at + gap]), line[at + 2 * gap]);
    });
  } else {
    by_stride(stride, count, [&](int64_t i, int64_t at) __attribute__((always_inline)) { to[i] = line[at]; });
    for (int64_t k = 1; k < taps; ++k)
      by_stride(stride, count, [&](int64_t i, int64_t at) __attribute__((always_inline)) {
        to[i] = join(to[i], line[at + k * gap]);
      });
  }
}

}  // namespace detail

// to[row * t.pitch + i] = join of the values of all cells of window i of a row that lie on the map, `empty` where there
// are none. value(offset) is that of the cell at an offset in the plane; join is associative and commutative but for
// rounding, and what is joined with `empty` stays as it is.
template <class C, class Value, class Join>
POOL_INLINE void fold(const Geometry& g, const Tile& t, C empty, C* __restrict to, const Value& value,
                      const Join& join) {
  const int64_t stride = g.stride[2], length = t.pitch * stride, begin = t.column * stride - g.begin[2];
  const auto block = [&](int64_t row) { return Block{t.plane, t.depth, t.row + row, t.column, t.width}; };
  if (t.rows * length > TILE) {
    // A single window spans more than a buffer holds.
    for (int64_t row = 0; row < t.rows; ++row)
      for (int64_t i = 0; i < t.width; ++i) {
        C joined = empty;
        for_lines(g, block(row), [&](bool there, int64_t offset) __attribute__((always_inline)) {
          for (int64_t kw = 0; there && kw < g.kernel[2]; ++kw) {
            const int64_t at = begin + i * stride + kw * g.dilation[2];
            if (at >= 0 && at < g.length[2]) joined = join(joined, value(offset + at));
          }
        });
        to[row * t.pitch + i] = joined;
      }
    return;
  }
  // Lines one after the other, with what they reach beyond the map.
  C lines[TILE];
  const int64_t left = std::clamp<int64_t>(-begin, 0, length);
  const int64_t right = std::clamp<int64_t>(g.length[2] - begin, left, length);
  for (int64_t row = 0; row < t.rows; ++row) {
    C* const line = lines + row * length;
    for (int64_t i = 0; i < left; ++i) line[i] = empty;
    detail::join_lines(g, block(row), begin + left, right - left, empty, line + left, value, join);
    for (int64_t i = right; i < length; ++i) line[i] = empty;
  }
  detail::join_columns(lines, stride, g.kernel[2], g.dilation[2], to, (t.rows - 1) * t.pitch + t.width, join);
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
