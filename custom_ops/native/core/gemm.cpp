#include "core/gemm.h"

#include <algorithm>
#include <memory>

#include "core/lanes.h"
#include "core/spread.h"

namespace poolexport {
namespace {

//: Rows of the piece of output that is kept in registers; its columns are two vectors.
constexpr int64_t ROWS = 6;
//: Rows and columns of a tile: a whole number of pieces in every type.
constexpr int64_t TILE = 96;
//: Terms of a sum that are added before the next are begun; the packed columns of so many stay in the first cache.
constexpr int64_t DEPTH = 256;
//: Bytes of packed matrices at a time, if more than one matrix is packed.
constexpr int64_t ROOM = int64_t{1} << 25;
template <class C>
constexpr int64_t COLUMNS = 2 * Lanes<C>::count;

int64_t pieces(int64_t length, int64_t size) { return (length + size - 1) / size; }

template <class C, class T>
struct Packing {
  View<T> from;
  int64_t rows, k;
  C* to;
};

// Panels of `width` rows lie one after the other, each by column; what is missing in the last is 0.
template <int64_t width, class C, class T>
POOL_INLINE void pack_panels(const Packing<C, T>& job, int64_t first, int64_t last) {
  for (int64_t panel = first; panel < last; ++panel) {
    C* to = job.to + panel * width * job.k;
    const int64_t begin = panel * width, there = std::min(width, job.rows - begin);
    const T* from = job.from.data + begin * job.from.row;
    if (there < width) std::fill(to, to + width * job.k, C(0));
    if (there == width && job.from.row == 1) {
      for (int64_t p = 0; p < job.k; ++p)
        for (int64_t i = 0; i < width; ++i) to[p * width + i] = C(widen(from[p * job.from.column + i]));
    } else if (there == width && job.from.column == 1) {
      const int64_t row = job.from.row;
      for (int64_t p = 0; p < job.k; ++p)
#pragma GCC unroll 16
        for (int64_t i = 0; i < width; ++i) to[p * width + i] = C(widen(from[p + i * row]));
    } else {
      for (int64_t i = 0; i < there; ++i)
        for (int64_t p = 0; p < job.k; ++p)
          to[p * width + i] = C(widen(from[i * job.from.row + p * job.from.column]));
    }
  }
}

// A piece of a tile: adds the products of k packed columns of a and rows of b.
template <class C>
POOL_INLINE void multiply_piece(int64_t k, const C* a, const C* b, C* out, bool begin) {
  constexpr int64_t width = Lanes<C>::count;
  lanes<C> sums[ROWS][2] = {};
  for (int64_t p = 0; p < k; ++p, a += ROWS, b += 2 * width) {
    lanes<C> left, right;
    load(left, b);
    load(right, b + width);
#pragma GCC unroll 8
    for (int64_t i = 0; i < ROWS; ++i) {
      sums[i][0] += a[i] * left;
      sums[i][1] += a[i] * right;
    }
  }
#pragma GCC unroll 8
  for (int64_t i = 0; i < ROWS; ++i)
#pragma GCC unroll 2
    for (int64_t j = 0; j < 2; ++j) {
      C* to = out + i * TILE + j * width;
      lanes<C> before = {};
      if (!begin) load(before, static_cast<const C*>(to));
      store(to, before + sums[i][j]);
    }
}

template <class C, class Out>
struct Tile {
  int64_t m, n, k, row, column;
  const C *a, *b;
  Out* out;
  bool symmetric;
  C divisor;
  C* scratch;
};

template <class C, class Out>
POOL_INLINE void multiply_tile(const Tile<C, Out>& job) {
  const int64_t rows = std::min(TILE, job.m - job.row), columns = std::min(TILE, job.n - job.column);
  if (job.k == 0) std::fill(job.scratch, job.scratch + TILE * TILE, C(0));
  for (int64_t begin = 0; begin < job.k; begin += DEPTH) {
    const int64_t k = std::min(DEPTH, job.k - begin);
    for (int64_t j = 0; j < columns; j += COLUMNS<C>) {
      const C* b = job.b + (job.column + j) * job.k + begin * COLUMNS<C>;
      // Pieces that lie below the diagonal as a whole are not read.
      const int64_t below = job.column + j + COLUMNS<C> - job.row;
      const int64_t end = job.symmetric ? std::min(rows, below) : rows;
      for (int64_t i = 0; i < end; i += ROWS)
        multiply_piece<C>(k, job.a + (job.row + i) * job.k + begin * ROWS, b, job.scratch + i * TILE + j, begin == 0);
    }
  }
  for (int64_t i = 0; i < rows; ++i) {
    C* from = job.scratch + i * TILE;
    Out* to = job.out + (job.row + i) * job.n + job.column;
    const int64_t start = job.symmetric ? std::max<int64_t>(0, job.row + i - job.column) : 0;
    if (job.divisor != 1)
      for (int64_t j = start; j < columns; ++j) from[j] /= job.divisor;
    for (int64_t j = start; j < columns; ++j) to[j] = narrow<Out>(computed<Out>(from[j]));
    if (job.symmetric)
      for (int64_t j = start; j < columns; ++j) job.out[(job.column + j) * job.n + job.row + i] = to[j];
  }
}

// What is left of a batch after so many matrices.
template <class T>
View<T> from(const View<T>& view, int64_t matrices) {
  return {view.data + matrices * view.batch, view.row, view.column, view.batch};
}

#define POOL_PRODUCTS(C, T)                                                              \
  POOL_TARGETS void pack_left(const Packing<C, T>& job, int64_t first, int64_t last) {   \
    pack_panels<ROWS>(job, first, last);                                                 \
  }                                                                                      \
  POOL_TARGETS void pack_right(const Packing<C, T>& job, int64_t first, int64_t last) {  \
    pack_panels<COLUMNS<C>>(job, first, last);                                           \
  }                                                                                      \
  POOL_TARGETS void run(const Tile<C, T>& job) { multiply_tile(job); }

POOL_PRODUCTS(float, float)
POOL_PRODUCTS(double, double)
POOL_PRODUCTS(double, float)
POOL_PRODUCTS(double, Half)
POOL_PRODUCTS(double, Bfloat)

}  // namespace

template <class C, class T, class Out>
void multiply(const Call& call, const Product<T, Out>& p) {
  if (p.batch == 0 || p.m == 0 || p.n == 0) return;
  const int64_t left = pieces(p.m, ROWS), right = pieces(p.n, COLUMNS<C>), panels = left + right;
  const int64_t room = (left * ROWS + right * COLUMNS<C>) * p.k;
  const int64_t chunk = std::clamp<int64_t>(ROOM / std::max<int64_t>(1, room * int64_t(sizeof(C))), 1, p.batch);
  const int64_t down = pieces(p.m, TILE), across = pieces(p.n, TILE);
  const std::unique_ptr<C[]> packed(new C[size_t(chunk * room)]);
  const std::unique_ptr<C[]> scratch(new C[size_t(MOST_TASKS * TILE * TILE)]);
  for (int64_t first = 0; first < p.batch; first += chunk) {
    const int64_t some = std::min(chunk, p.batch - first);
    spread(call, some * panels, [&](int64_t item, int64_t) {
      const int64_t matrix = item / panels, panel = item % panels;
      C* const to = packed.get() + matrix * room;
      if (panel < left)
        pack_left({from(p.a, first + matrix), p.m, p.k, to}, panel, panel + 1);
      else
        pack_right({from(p.b.turned(), first + matrix), p.n, p.k, to + left * ROWS * p.k}, panel - left,
                   panel - left + 1);
    });
    spread(call, some * down * across, [&](int64_t item, int64_t task) {
      const int64_t matrix = item / (down * across), row = item / across % down, column = item % across;
      if (p.symmetric && column < row) return;
      const C* const a = packed.get() + matrix * room;
      Out* const out = p.out + (first + matrix) * p.m * p.n;
      run(Tile<C, Out>{p.m, p.n, p.k, row * TILE, column * TILE, a, a + left * ROWS * p.k, out, p.symmetric,
                     C(p.divisor), scratch.get() + task * TILE * TILE});
    });
  }
}

template void multiply<float>(const Call&, const Product<float>&);
template void multiply<double>(const Call&, const Product<double>&);
template void multiply<double>(const Call&, const Product<float>&);
template void multiply<double>(const Call&, const Product<Half>&);
template void multiply<double>(const Call&, const Product<Bfloat>&);
template void multiply<double>(const Call&, const Product<double, float>&);
template void multiply<double>(const Call&, const Product<double, Half>&);
template void multiply<double>(const Call&, const Product<double, Bfloat>&);
template void multiply<double>(const Call&, const Product<float, double>&);
template void multiply<double>(const Call&, const Product<Half, double>&);
template void multiply<double>(const Call&, const Product<Bfloat, double>&);

}  // namespace poolexport
