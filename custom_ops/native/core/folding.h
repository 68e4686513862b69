// Tensors folded over whole axes, whichever they are, as rows of cells that lie side by side.
//
// Where the last axis is folded, a row is a piece of what becomes one output; where it is kept, every cell of a row
// belongs to an output of its own. Either way cell i of every row is added to accumulator i, which is vector code.
#pragma once

#include <algorithm>

#include "core/operator.h"

namespace poolexport {

//: Accumulators, and cells in a row at most. The same number on every machine, so that sums are the same.
constexpr int64_t LANES = 64;

// The attributes axes and keepdims.
struct Axes {
  Shape axes;
  bool keep;

  explicit Axes(const Attributes& attributes)
      : axes(attributes.get<Shape>("axes")), keep(attributes.get<int64_t>("keepdims", 1) != 0) {
    if (axes.empty()) refuse("axes names no axis");
  }

  bool folds(size_t axis) const { return std::find(axes.begin(), axes.end(), int64_t(axis)) != axes.end(); }

  // The shape of x without these axes, or with length 1 there.
  Shape output_shape(const Shape& x) const {
    for (size_t i = 0; i < axes.size(); ++i)
      if (axes[i] < 0 || axes[i] >= int64_t(x.size()) || std::count(axes.begin(), axes.end(), axes[i]) > 1)
        refuse("axes %s do not suit an input of shape %s", spelled(axes).c_str(), spelled(x).c_str());
    Shape shape;
    for (size_t i = 0; i < x.size(); ++i) {
      if (!folds(i)) shape.push_back(x[i]);
      if (!folds(i)) continue;
      if (x[i] == 0) refuse("there is nothing to pool in an input of shape %s", spelled(x).c_str());
      if (keep) shape.push_back(1);
    }
    return shape;
  }
};

struct Folding {
  bool across;                     // cells of a row belong to outputs of their own
  int64_t run;                     // cells side by side
  std::vector<int64_t> beginnings;  // where the first cells of outputs lie; those of a row count as one
  std::vector<int64_t> offsets;    // of runs that are folded together
  int64_t cells;                   // folded into one output

  Folding(const Axes& axes, const Shape& x) : run(1), beginnings{0}, offsets{0}, cells(1) {
    size_t last = x.size() - 1;
    across = !axes.folds(last);
    // The axes at the end that are all folded or all kept make up the run.
    for (;; --last) {
      run *= x[last];
      if (last == 0 || axes.folds(last - 1) == across) break;
    }
    int64_t stride = run;
    for (size_t i = last; i-- > 0; stride *= x[i]) {
      std::vector<int64_t>& places = axes.folds(i) ? offsets : beginnings;
      const size_t inner = places.size();
      places.reserve(inner * size_t(x[i]));
      for (int64_t step = 1; step < x[i]; ++step)
        for (size_t k = 0; k < inner; ++k) places.push_back(places[k] + step * stride);
    }
    cells = int64_t(offsets.size()) * (across ? 1 : run);
  }

  // Pieces of work, each with outputs of its own.
  int64_t pieces() const { return int64_t(beginnings.size()) * blocks(); }
  int64_t blocks() const { return across ? (run + LANES - 1) / LANES : 1; }
  // Outputs of a piece, and the first of them.
  int64_t width(int64_t piece) const { return across ? std::min(LANES, run - piece % blocks() * LANES) : 1; }
  int64_t output(int64_t piece) const { return piece / blocks() * (across ? run : 1) + piece % blocks() * LANES; }
};

// Calls body(cells, count) for every row of a piece.
template <class T, class Body>
POOL_INLINE void for_cells(const Folding& f, int64_t piece, const T* x, const Body& body) {
  const T* start = x + f.beginnings[size_t(piece / f.blocks())] + piece % f.blocks() * LANES;
  for (const int64_t offset : f.offsets)
    if (f.across)
      body(start + offset, f.width(piece));
    else
      for (int64_t i = 0; i < f.run; i += LANES) body(start + offset + i, f.run - i < LANES ? f.run - i : LANES);
}

// Puts the accumulators of one output together, as join(a, b); the same order on every machine.
template <class C, class Join>
POOL_INLINE void join_lanes(const Folding& f, C* lanes, const Join& join) {
  if (f.across) return;
#pragma GCC unroll 8
  for (int64_t half = LANES / 2; half > 0; half /= 2)
    for (int64_t i = 0; i < half; ++i) lanes[i] = join(lanes[i], lanes[i + half]);
}

// Calls work(first, last) for all pieces, split among tasks.
template <class Work>
void for_pieces(const Call& call, const Folding& f, const Work& work) {
  call.split(size_t(f.pieces()), [&](size_t first, size_t last, size_t) { work(first, last); });
}

// What kernels over whole axes share: their attributes, their output, and the road to an element type.
struct OverAxes : Kernel {
  Axes axes;

  explicit OverAxes(const Attributes& attributes) : axes(attributes) {}

  std::vector<Shape> shapes(const std::vector<Tensor>& inputs) const override {
    return {axes.output_shape(inputs[0].shape)};
  }

 protected:
  // Calls work(element, folding, first, last) for pieces of all outputs.
  template <class Work>
  void each(Call& call, const Work& work) const {
    const Folding f(axes, call.inputs[0].shape);
    with_element(call.inputs[0].type, [&](auto element) {
      for_pieces(call, f, [&](size_t first, size_t last) { work(element, f, first, last); });
    });
  }
};

}  // namespace poolexport
