// Which cells of a block's windows lie on the map, and which are pads.
#pragma once

#include "core/coverage.h"
#include "core/larger.h"
#include "core/window.h"

namespace poolexport {

// Calls body(k, low, high) for every cell k of the windows of a block: it lies on the map for the outputs from low up to
// high, and for no others.
template <class Body>
POOL_INLINE void for_taps(const Geometry& g, const Block& b, const Body& body) {
  int64_t k = 0;
  for_lines(g, b, [&](bool there, int64_t) __attribute__((always_inline)) {
    for (int64_t kw = 0; kw < g.kernel[2]; ++kw, ++k) {
      const Reach r = reach(g, b, kw);
      body(k, there ? r.low : 0, there ? r.high : 0);
    }
  });
}

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
  const Coverage map(g, {});
  const C across = C(map.along(g, 0, b.depth) * map.along(g, 1, b.row));
  for (int64_t i = 0; i < b.width; ++i) inside[i] *= across;
}

// The largest cell of every window of a block, from rows that `gather` has laid out; NaN where one is NaN.
template <class C>
POOL_INLINE void largest_cells(const Geometry& g, int64_t width, const C* __restrict cells, C* __restrict largest) {
  for (int64_t i = 0; i < width; ++i) largest[i] = cells[i];
  for (int64_t k = 1; k < g.cells; ++k) {
    const C* cell = cells + k * BLOCK;
    for (int64_t i = 0; i < width; ++i) largest[i] = larger(largest[i], cell[i]);
  }
}

}  // namespace poolexport
