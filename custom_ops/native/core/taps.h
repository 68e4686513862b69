// Which cells of a block's windows lie on the map, and which are pads.
#pragma once

#include "core/larger.h"
#include "core/window.h"

namespace poolexport {

// Calls body(k, low, high) for every cell k of the windows of a block: it lies on the map for the outputs from low up to
// high, and for no others.
template <class Body>
POOL_INLINE void for_taps(const Geometry& g, const Block& b, const Body& body) {
  int64_t k = 0;
  const int64_t stride = g.stride[2], first = b.column * stride - g.begin[2];
  for (int64_t kd = 0; kd < g.kernel[0]; ++kd) {
    const int64_t d = b.depth * g.stride[0] - g.begin[0] + kd * g.dilation[0];
    for (int64_t kh = 0; kh < g.kernel[1]; ++kh) {
      const int64_t h = b.row * g.stride[1] - g.begin[1] + kh * g.dilation[1];
      const bool outside = d < 0 || d >= g.length[0] || h < 0 || h >= g.length[1];
      for (int64_t kw = 0; kw < g.kernel[2]; ++kw, ++k) {
        const int64_t w = first + kw * g.dilation[2];
        const int64_t low = w < 0 ? (-w + stride - 1) / stride : 0;
        const int64_t high = outside || w >= g.length[2] ? 0 : (g.length[2] - 1 - w) / stride + 1;
        const int64_t end = high < b.width ? high : b.width;
        body(k, low < end ? low : end, end);
      }
    }
  }
}

namespace detail {

// How many cells of a window lie on the map along one axis.
POOL_INLINE int64_t cells_along(const Geometry& g, int axis, int64_t output) {
  int64_t number = 0;
  for (int64_t k = 0; k < g.kernel[axis]; ++k) {
    const int64_t at = output * g.stride[axis] - g.begin[axis] + k * g.dilation[axis];
    number += at >= 0 && at < g.length[axis];
  }
  return number;
}

}  // namespace detail

// The number of cells of every window of a block that lie on the map.
template <class C>
POOL_INLINE void count_cells(const Geometry& g, const Block& b, C* __restrict inside) {
  for (int64_t i = 0; i < b.width; ++i) inside[i] = 0;
  for (int64_t k = 0; k < g.kernel[2]; ++k) {
    const int64_t first = b.column * g.stride[2] - g.begin[2] + k * g.dilation[2];
    for (int64_t i = 0; i < b.width; ++i) {
      const int64_t at = first + i * g.stride[2];
      inside[i] += at >= 0 && at < g.length[2] ? C(1) : C(0);
    }
  }
  const C across = C(detail::cells_along(g, 0, b.depth) * detail::cells_along(g, 1, b.row));
  for (int64_t i = 0; i < b.width; ++i) inside[i] *= across;
}

// The largest cell of every window of a block, from rows that `gather` has laid out; NaN where one is NaN.
template <class C>
POOL_INLINE void largest_cells(const Geometry& g, const Block& b, const C* __restrict cells, C* __restrict largest) {
  for (int64_t i = 0; i < b.width; ++i) largest[i] = cells[i];
  for (int64_t k = 1; k < g.cells; ++k) {
    const C* cell = cells + k * BLOCK;
    for (int64_t i = 0; i < b.width; ++i) largest[i] = larger(largest[i], cell[i]);
  }
}

}  // namespace poolexport
