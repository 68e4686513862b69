// SoftmaxPool: the mean of every window of x, weighted by the softmax of logits over the window.
#include "core/fold.h"
#include "core/math.h"
#include "core/taps.h"

namespace poolexport {
namespace {

template <class T>
struct Job {
  Geometry g;
  Tiling tiling;
  const T *x, *logits;
  int64_t repeat;  // channels of x that share a plane of logits
  T* y;
  computed<T>* scratch;
};

// Below this exp is 0, and the cell adds nothing whatever it holds.
template <class C>
constexpr C VANISHING = sizeof(C) == 4 ? C(-104) : C(-746);

// Any logits: those of every window are shifted by the largest of them.
template <class T>
POOL_INLINE void shifted_block(const Job<T>& job, const Block& b, T* y) {
  using C = computed<T>;
  const Geometry& g = job.g;
  const bool shared = job.x == job.logits;
  C* const scores = job.scratch;
  C* const cells = shared ? scores : scores + g.cells * BLOCK;
  gather(g, b, job.logits + b.plane / job.repeat * g.plane_size(), C(-__builtin_inf()), scores);
  if (!shared) gather(g, b, job.x + b.plane * g.plane_size(), C(0), cells);
  const int64_t width = whole_pieces(scores, g.cells, b.width);
  if (!shared) whole_pieces(cells, g.cells, b.width);
  C largest[BLOCK], above[BLOCK], below[BLOCK];
  largest_cells(g, width, scores, largest);
  for (int64_t i = 0; i < width; ++i) above[i] = below[i] = 0;
  for (int64_t k = 0; k < g.cells; ++k) {
    const C *score = scores + k * BLOCK, *cell = cells + k * BLOCK;
    for (int64_t i = 0; i < width; ++i) {
      const C shifted = score[i] - largest[i], weight = exp_of_negative(shifted);
      above[i] += shifted < VANISHING<C> ? C(0) : weight * cell[i];
      below[i] += weight;
    }
  }
  for (int64_t i = 0; i < b.width; ++i) y[i] = narrow<T>(above[i] / below[i]);
}

// Logits of this magnitude need no shift, and their exponentials can be shared by all windows: times a cell between
// SMALLEST and LARGEST they neither lose digits nor overflow. A cell that is its own logit may be as small as it likes.
template <class C>
constexpr C MODERATE = sizeof(C) == 4 ? C(40) : C(300);
template <class C>
constexpr C SMALLEST = sizeof(C) == 4 ? C(0x1p-68) : C(0x1p-580);
template <class C>
constexpr C LARGEST = sizeof(C) == 4 ? C(0x1p38) : C(0x1p500);

// The piece of map that the windows of a tile reach, as a map of its own.
struct Piece {
  Geometry g;
  int64_t first[3];  // where it begins in its plane

  Piece(const Geometry& whole, const Tile& t) : g(whole) {
    const int64_t outputs[3] = {t.depth, t.row, t.column}, counts[3] = {1, t.rows, t.width};
    for (size_t axis = 0; axis < 3; ++axis) {
      const int64_t begin = outputs[axis] * g.stride[axis] - g.begin[axis];
      const int64_t end = begin + spanned(whole, axis, counts[axis]);
      first[axis] = std::clamp<int64_t>(begin, 0, whole.length[axis]);
      g.length[axis] = std::clamp<int64_t>(end, first[axis], whole.length[axis]) - first[axis];
      g.begin[axis] = first[axis] - begin;
    }
  }

  // Calls body(from, to, count) for all cells: `count` from `from` on in the plane are those from `to` on here.
  template <class Body>
  POOL_INLINE void for_runs(const Geometry& whole, const Body& body) const {
    // Lines that are here in full lie side by side, and so do slices.
    const bool lines = g.length[2] == whole.length[2], slices = lines && g.length[1] == whole.length[1];
    const int64_t run = g.length[2] * (lines ? g.length[1] : 1) * (slices ? g.length[0] : 1);
    for (int64_t d = 0; d < (slices ? 1 : g.length[0]); ++d)
      for (int64_t h = 0; h < (lines ? 1 : g.length[1]); ++h)
        body(((first[0] + d) * whole.length[1] + first[1] + h) * whole.length[2] + first[2],
             (d * g.length[1] + h) * g.length[2], run);
  }
};

// Writes the outputs of a tile where all its logits and cells are such, and tells whether they are.
template <class T>
POOL_INLINE bool unshifted_tile(const Job<T>& job, const Tile& t, T* y) {
  using C = computed<T>;
  using Bits = std::conditional_t<sizeof(C) == 4, uint32_t, uint64_t>;
  const Geometry& g = job.g;
  const T* const x = job.x + t.plane * g.plane_size();
  const T* const logits = job.logits + t.plane / job.repeat * g.plane_size();
  const auto size = [](T cell) __attribute__((always_inline)) {
    return Bits(bits_as<Bits>(widen(cell)) & ~(Bits{1} << (8 * sizeof(Bits) - 1)));
  };
  const Piece piece(g, t);
  Bits extreme = 0, least = ~Bits{0}, most = 0;
  piece.for_runs(g, [&](int64_t from, int64_t, int64_t count) __attribute__((always_inline)) {
    for (int64_t i = from; i < from + count; ++i) extreme = size(logits[i]) > extreme ? size(logits[i]) : extreme;
    if (job.x == job.logits) return;
    for (int64_t i = from; i < from + count; ++i) {
      const Bits cell = size(x[i]), less = cell - 1;
      least = less < least ? less : least;
      most = cell > most ? cell : most;
    }
  });
  if (extreme > bits_as<Bits>(MODERATE<C>) || least < bits_as<Bits>(SMALLEST<C>) - 1 ||
      most > bits_as<Bits>(LARGEST<C>))
    return false;
  C *const weights = job.scratch, *const products = weights + TILE, *const above = products + TILE,
             *const below = above + TILE;
  piece.for_runs(g, [&](int64_t from, int64_t to, int64_t count) __attribute__((always_inline)) {
    for (int64_t i = 0; i < count; ++i) {
      const C weight = exp_of_moderate(widen(logits[from + i]));
      weights[to + i] = weight;
      products[to + i] = weight * widen(x[from + i]);
    }
  });
  const Tile here{0, 0, 0, 0, t.rows, t.width, t.pitch};
  fold(piece.g, here, C(0), below, [&](int64_t at) __attribute__((always_inline)) { return weights[at]; }, Sum{});
  fold(piece.g, here, C(0), above, [&](int64_t at) __attribute__((always_inline)) { return products[at]; }, Sum{});
  for_results(g, t, y, [&](int64_t from, T* to, int64_t count) __attribute__((always_inline)) {
    for (int64_t i = 0; i < count; ++i) to[i] = narrow<T>(above[from + i] / below[from + i]);
  });
  return true;
}

template <class T>
POOL_INLINE void rows_of(const Job<T>& job, size_t first, size_t last) {
  const auto body = [&](const Tile& t, T* y) __attribute__((always_inline)) {
    if (job.tiling.fits && unshifted_tile(job, t, y)) return;
    for (int64_t row = 0; row < t.rows; ++row)
      for (int64_t column = 0; column < t.width; column += BLOCK)
        shifted_block(job, {t.plane, t.depth, t.row + row, t.column + column, std::min(BLOCK, t.width - column)},
                      y + row * job.g.output[2] + column);
  };
  for_tiles(job.g, job.tiling, job.y, int64_t(first), int64_t(last), body);
}

POOL_FOR_EACH_ELEMENT(rows, Job)

struct SoftmaxPool final : Kernel {
  Window window;

  explicit SoftmaxPool(const Attributes& attributes) : window(attributes) {}

  std::vector<Shape> shapes(const std::vector<Tensor>& inputs) const override {
    require_like(inputs[0].shape, inputs[1].shape, "logits");
    return {window.output_shape(inputs[0].shape)};
  }

  void compute(Call& call) const override {
    with_element(call.inputs[0].type, [&](auto element) {
      using T = decltype(element);
      const Geometry g(window, call.inputs[0].shape);
      const Tiling tiling(g, true);
      const int64_t repeat = channels_sharing(call.inputs[0].shape, call.inputs[1].shape);
      const size_t room = size_t(std::max(2 * g.cells * BLOCK, 4 * TILE));
      for_rows<computed<T>>(call, g.rows(), room, [&](size_t first, size_t last, auto* scratch) {
        const T *x = call.inputs[0].as<T>(), *logits = call.inputs[1].as<T>();
        rows({g, tiling, x, logits, repeat, call.output<T>(), scratch}, first, last);
      });
    });
  }
};

}  // namespace

extern const Operator softmax_pool{"SoftmaxPool", {Type::SAME, Type::SAME}, {Type::SAME}, create<SoftmaxPool>};

}  // namespace poolexport
