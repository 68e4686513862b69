// Windows over feature maps, as rows of cells that lie side by side.
//
// A block is a piece of one output row. All cells that its windows hold first lie in row 0, those that they hold second
// in row 1, and so on, each row contiguous: whatever a window is reduced to, the loop over a row is vector code.
#pragma once

#include <algorithm>
#include <memory>
#include <type_traits>

#include "core/operator.h"

namespace poolexport {

//: Outputs in a block; rows start this far apart.
constexpr int64_t BLOCK = 64;
//: Bytes of scratch that all tasks share; those of huge windows are fewer.
constexpr size_t SCRATCH = size_t{1} << 26;

// The window of a node: one entry per spatial axis, in cells.
struct Window {
  Shape kernel, strides, begin, end, dilations;

  Window() = default;
  // Reads kernel_shape, strides, pads and dilations.
  explicit Window(const Attributes& attributes);
  // From its parts; refuses what is no window.
  Window(Shape kernel, Shape strides, const Shape& pads, Shape dilations);

  size_t rank() const { return kernel.size(); }
  int64_t size() const;
  // (N, C, *output); refuses a map of another rank, and one that is too small for a single window.
  Shape output_shape(const Shape& x) const;
};

// Channels of x that share a plane of another map: all of them, or one.
inline int64_t channels_sharing(const Shape& x, const Shape& other) {
  return x[1] / std::max<int64_t>(1, other[1]);
}

// Refuses a second map that is not of the shape of x, or of one channel that all channels of x share.
void require_like(const Shape& x, const Shape& other, const char* name);

// How the windows lie on a map, with three spatial axes; maps of fewer have leading axes of length 1.
struct Geometry {
  int64_t planes, length[3], output[3], kernel[3], stride[3], begin[3], dilation[3], cells;

  Geometry(const Window& window, const Shape& x);
  Geometry() = default;

  int64_t plane_size() const { return length[0] * length[1] * length[2]; }
  int64_t output_size() const { return output[0] * output[1] * output[2]; }
  //: Output rows of all planes.
  int64_t rows() const { return planes * output[0] * output[1]; }
};

// Where a block lies: the output at (depth, row, column) of a plane, and how many outputs follow, of one row or of several
// whole ones.
struct Block {
  int64_t plane, depth, row, column, width, rows = 1;
};

// Calls body(piece, at) for every row of a block: a block of its own, whose outputs begin at number `at`.
template <class Body>
POOL_INLINE void by_row(const Block& b, const Body& body) {
  if (b.rows == 1) return body(b, 0);
  const int64_t width = b.width / b.rows;
  for (int64_t row = 0; row < b.rows; ++row)
    body(Block{b.plane, b.depth, b.row + row, b.column, width}, row * width);
}

// Calls body(i, stride * i) for every i below count; strides of 1 and 2, which are vector code, have loops of their own.
template <class Body>
POOL_INLINE void by_stride(int64_t stride, int64_t count, const Body& body) {
  if (stride == 1)
    for (int64_t i = 0; i < count; ++i) body(i, i);
  else if (stride == 2)
    for (int64_t i = 0; i < count; ++i) body(i, 2 * i);
  else
    for (int64_t i = 0; i < count; ++i) body(i, stride * i);
}

//: Blocks are computed in whole pieces of so many outputs: what is left over would be computed one by one.
constexpr int64_t PIECE = 16;

// Lengthens the rows of a block to whole pieces, with zeros; how long they are then.
template <class C>
POOL_INLINE int64_t whole_pieces(C* rows, int64_t count, int64_t width) {
  const int64_t end = (width + PIECE - 1) / PIECE * PIECE;
  for (int64_t k = 0; k < count; ++k)
    for (int64_t i = width; i < end; ++i) rows[k * BLOCK + i] = 0;
  return end;
}

namespace detail {

template <class T, class C>
POOL_INLINE void strided(const T* __restrict from, int64_t stride, C* __restrict to, int64_t count) {
  by_stride(stride, count, [&](int64_t i, int64_t at) __attribute__((always_inline)) { to[i] = widen(from[at]); });
}

}  // namespace detail

// A line of the windows of an output row: whether it lies on the map, and where it begins in its plane.
struct Line {
  bool there;
  int64_t offset;
};

POOL_INLINE Line line_of(const Geometry& g, const Block& b, int64_t kd, int64_t kh) {
  const int64_t d = b.depth * g.stride[0] - g.begin[0] + kd * g.dilation[0];
  const int64_t h = b.row * g.stride[1] - g.begin[1] + kh * g.dilation[1];
  const bool there = d >= 0 && d < g.length[0] && h >= 0 && h < g.length[1];
  return {there, there ? (d * g.length[1] + h) * g.length[2] : 0};
}

// Calls body(there, offset) for every line of the windows of an output row.
template <class Body>
POOL_INLINE void for_lines(const Geometry& g, const Block& b, const Body& body) {
  for (int64_t kd = 0; kd < g.kernel[0]; ++kd)
    for (int64_t kh = 0; kh < g.kernel[1]; ++kh) {
      const Line line = line_of(g, b, kd, kh);
      body(line.there, line.offset);
    }
}

// Calls body(k, kd, kh, kw) for every cell k of a window.
template <class Body>
POOL_INLINE void for_cells(const Geometry& g, const Body& body) {
  int64_t k = 0;
  for (int64_t kd = 0; kd < g.kernel[0]; ++kd)
    for (int64_t kh = 0; kh < g.kernel[1]; ++kh)
      for (int64_t kw = 0; kw < g.kernel[2]; ++kw, ++k) body(k, kd, kh, kw);
}

// The outputs of a row whose cell kw lies on the map: from low up to high, that of output i at column + i * stride.
struct Reach {
  int64_t column, low, high;
};

POOL_INLINE Reach reach(const Geometry& g, const Block& b, int64_t kw) {
  const int64_t stride = g.stride[2], w = b.column * stride - g.begin[2] + kw * g.dilation[2];
  int64_t low = w < 0 ? (-w + stride - 1) / stride : 0;
  int64_t high = w >= g.length[2] ? 0 : (g.length[2] - 1 - w) / stride + 1;
  low = low > b.width ? b.width : low;
  high = high > b.width ? b.width : high < low ? low : high;
  return {w, low, high};
}

namespace detail {

// Cell kw of every window of a row, from the line that begins at `line`, or pad where it is not on the map.
template <class T, class C>
POOL_INLINE void gather_tap(const Geometry& g, const Block& b, bool there, const T* line, int64_t kw, C pad,
                            C* __restrict to) {
  Reach r = reach(g, b, kw);
  if (!there) r.low = r.high = b.width;
  for (int64_t i = 0; i < r.low; ++i) to[i] = pad;
  if (r.low < r.high)
    strided(line + (r.column + r.low * g.stride[2]), g.stride[2], to + r.low, r.high - r.low);
  for (int64_t i = r.high; i < b.width; ++i) to[i] = pad;
}

}  // namespace detail

// Lays the cells of a block's windows out in rows: to[k * BLOCK + i] is cell k of window i, and pad outside of the map.
// Widened to the type computed in. `plane` is the plane's first cell.
template <class T, class C>
POOL_INLINE void gather(const Geometry& g, const Block& b, const T* plane, C pad, C* __restrict to) {
  by_row(b, [&](const Block& piece, int64_t at) __attribute__((always_inline)) {
    C* cells = to + at;
    for_lines(g, piece, [&](bool there, int64_t offset) __attribute__((always_inline)) {
      for (int64_t kw = 0; kw < g.kernel[2]; ++kw, cells += BLOCK)
        detail::gather_tap(g, piece, there, plane + offset, kw, pad, cells);
    });
  });
}

// One cell of all windows after the other in `cells`: body(k, cells) once cells[i] is cell k of window i.
template <class T, class C, class Body>
POOL_INLINE void for_taps(const Geometry& g, const Block& b, const T* plane, C pad, C* cells, const Body& body) {
  for_cells(g, [&](int64_t k, int64_t kd, int64_t kh, int64_t kw) __attribute__((always_inline)) {
    by_row(b, [&](const Block& piece, int64_t at) __attribute__((always_inline)) {
      const Line line = line_of(g, piece, kd, kh);
      detail::gather_tap(g, piece, line.there, plane + line.offset, kw, pad, cells + at);
    });
    body(k, cells);
  });
}

// Calls body(block, to) for every block of the rows from first up to last; `to` is where its outputs begin. Short rows
// share a block.
template <class T, class Body>
POOL_INLINE void for_blocks(const Geometry& g, T* y, int64_t first, int64_t last, const Body& body) {
  const int64_t width = g.output[2], most = std::max<int64_t>(1, BLOCK / std::max<int64_t>(1, width));
  int64_t rows = 1;
  for (int64_t index = first; index < last; index += rows) {
    const int64_t row = index % g.output[1], depth = index / g.output[1] % g.output[0];
    const int64_t plane = index / (g.output[1] * g.output[0]);
    rows = std::min({most, last - index, g.output[1] - row});
    T* const to = y + index * width;
    if (rows > 1)
      body(Block{plane, depth, row, 0, rows * width, rows}, to);
    else
      for (int64_t column = 0; column < width; column += BLOCK)
        body(Block{plane, depth, row, column, std::min(BLOCK, width - column)}, to + column);
  }
}

// Splits rows among tasks, each with a piece of scratch of its own: work(first, last, scratch).
template <class C, class Work>
void for_rows(const Call& call, int64_t rows, size_t scratch, const Work& work, size_t most = TASKS) {
  most = std::min({most, size_t(rows), std::max<size_t>(1, SCRATCH / (scratch * sizeof(C) + 1))});
  std::unique_ptr<C[]> space(new C[most * scratch]);
  call.split(
      size_t(rows), [&](size_t first, size_t last, size_t task) { work(first, last, space.get() + task * scratch); },
      most);
}

}  // namespace poolexport
