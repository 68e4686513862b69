// Tiles: outputs of several rows that are computed together, so that loops are long however short the rows are.
#pragma once

#include <algorithm>

#include "core/window.h"

namespace poolexport {

//: Numbers in a buffer of a tile: few enough for the stack and for the first cache.
constexpr int64_t TILE = 2048;

// Cells from the first of a window up to the last of the window `count - 1` further on.
POOL_INLINE int64_t spanned(const Geometry& g, size_t axis, int64_t count) {
  return (count - 1) * g.stride[axis] + (g.kernel[axis] - 1) * g.dilation[axis] + 1;
}

// Outputs of a row of a tile, with those that are computed for nothing so that rows follow each other in one loop.
POOL_INLINE int64_t pitch_of(const Geometry& g, int64_t width) {
  return (spanned(g, 2, width) + g.stride[2] - 1) / g.stride[2];
}

// The first output of a tile, how many there are, and how far apart results of rows begin.
struct Tile {
  int64_t plane, depth, row, column, rows, width, pitch;

  // Whether its results lie as its outputs do: whole rows, and nothing computed for nothing between them.
  bool seamless(const Geometry& g) const { return width == g.output[2] && pitch == width; }
};

// How large tiles are.
struct Tiling {
  int64_t rows, width;
  bool fits;  // whether the cells of a tile fit into a buffer

  // Whether cells are kept, or only lines that are joined already.
  Tiling(const Geometry& g, bool kept) : rows(1), width(std::min(TILE, g.output[2])) {
    const auto within = [&](int64_t number) {
      const auto part = [&](size_t axis, int64_t count) { return std::min(g.length[axis], spanned(g, axis, count)); };
      return number <= TILE / (pitch_of(g, width) * g.stride[2]) &&
             (!kept || part(0, 1) * part(1, number) * part(2, width) <= TILE);
    };
    while (width > PIECE && !within(1)) width /= 2;
    fits = within(1);
    while (fits && rows < g.output[1] && within(rows + 1)) ++rows;
  }
};

// Calls body(tile, to) for all outputs of the rows from first up to last; `to` is where those of the tile begin.
template <class T, class Body>
POOL_INLINE void for_tiles(const Geometry& g, const Tiling& tiling, T* y, int64_t first, int64_t last,
                           const Body& body) {
  int64_t rows = 0;
  for (int64_t index = first; index < last; index += rows) {
    const int64_t row = index % g.output[1], depth = index / g.output[1] % g.output[0];
    const int64_t plane = index / (g.output[1] * g.output[0]);
    rows = std::min({tiling.rows, last - index, g.output[1] - row});
    for (int64_t column = 0; column < g.output[2]; column += tiling.width) {
      const int64_t width = std::min(tiling.width, g.output[2] - column);
      body(Tile{plane, depth, row, column, rows, width, pitch_of(g, width)}, y + index * g.output[2] + column);
    }
  }
}

// Calls body(from, to, count) for all outputs of a tile: `count` results from number `from` on belong at `to`.
template <class T, class Body>
POOL_INLINE void for_results(const Geometry& g, const Tile& t, T* y, const Body& body) {
  if (t.seamless(g)) return body(0, y, t.rows * t.pitch);
  for (int64_t row = 0; row < t.rows; ++row) body(row * t.pitch, y + row * g.output[2], t.width);
}

}  // namespace poolexport
