// Which cells of a block's windows lie on the map, and which are pads.
#pragma once

#include "core/coverage.h"
#include "core/larger.h"
#include "core/window.h"

namespace poolexport {

// Calls body(k) for every cell k of the windows of a block once there[i] is 1 where it lies on the map for output i, and 0
// where it is a pad.
template <class C, class Body>
POOL_INLINE void for_taps(const Geometry& g, const Block& b, C* there, const Body& body) {
  for_cells(g, [&](int64_t k, int64_t kd, int64_t kh, int64_t kw) __attribute__((always_inline)) {
    by_row(b, [&](const Block& piece, int64_t at) __attribute__((always_inline)) {
      const Reach r = reach(g, piece, kw);
      const bool line = line_of(g, piece, kd, kh).there;
      for (int64_t i = 0; i < piece.width; ++i) there[at + i] = line && i >= r.low && i < r.high ? C(1) : C(0);
    });
    body(k);
  });
}

// The number of cells of every window of a block that lie on the map.
template <class C>
POOL_INLINE void count_cells(const Geometry& g, const Block& b, C* __restrict inside) {
  const Coverage map(g, {});
  by_row(b, [&](const Block& piece, int64_t at) __attribute__((always_inline)) {
    C* const counts = inside + at;
    for (int64_t i = 0; i < piece.width; ++i) counts[i] = 0;
    for (int64_t k = 0; k < g.kernel[2]; ++k) {
      const int64_t first = piece.column * g.stride[2] - g.begin[2] + k * g.dilation[2];
      for (int64_t i = 0; i < piece.width; ++i) {
        const int64_t cell = first + i * g.stride[2];
        counts[i] += cell >= 0 && cell < g.length[2] ? C(1) : C(0);
      }
    }
    const C across = C(map.along(g, 0, piece.depth) * map.along(g, 1, piece.row));
    for (int64_t i = 0; i < piece.width; ++i) counts[i] *= across;
  });
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
