#include "core/eigen.h"

#include <cmath>
#include <memory>

#include "core/lanes.h"
#include "core/spread.h"

namespace poolexport {
namespace {

//: Columns of the vectors that are turned together: those of all rows stay in the second cache.
constexpr int64_t WIDE = 32, NARROW = 8;
//: Turns of a matrix that are collected at most before they are applied, if one sweep has not more.
constexpr int64_t COLLECTED = 16384;
//: Sweeps for one eigenvalue; two are usual.
constexpr int64_t MOST_SWEEPS = 60;
constexpr double EPSILON = 0x1p-52;

struct Turn {
  double c, s;
};
// Turns of the rows below `top`, one after the other upwards: (top - 1, top), (top - 2, top - 1) and so on.
struct Sweep {
  int64_t top, count;
};
struct Collection {
  Turn* turns;
  Sweep* sweeps;
  int64_t turned, swept;
};

// One matrix on its way; where `matrix` was are the vectors of the reflections at last.
struct Work {
  int64_t d;
  double *matrix, *diagonal, *off, *factors;  // (d, d), (d), (d), (d)
  double* spare;                              // (3, d)
  double scale;
  int64_t room;  // for turns, and for sweeps, of a collection
  Collection ready, coming;
  int64_t at, tries;
};

// a -= x v + y w over a row, and the product of what is left with u.
POOL_INLINE double update(double* __restrict a, const double* __restrict v, const double* __restrict w, double x,
                          double y, const double* __restrict u, int64_t count) {
  constexpr int64_t width = Lanes<double>::count;
  lanes<double> sums[2] = {}, left, right, value, other;
  int64_t i = 0;
  for (; i + 2 * width <= count; i += 2 * width)
#pragma GCC unroll 2
    for (int64_t k = 0; k < 2; ++k) {
      const int64_t at = i + k * width;
      load(value, static_cast<const double*>(a + at));
      load(left, v + at);
      load(right, w + at);
      load(other, u + at);
      value -= x * left + y * right;
      store(a + at, value);
      sums[k] += value * other;
    }
  double rest = 0;
  for (; i < count; ++i) {
    a[i] -= x * v[i] + y * w[i];
    rest += a[i] * u[i];
  }
  return total<double>(sums[0] + sums[1]) + rest;
}

// Reflections H = I - f v v^T make the matrix tridiagonal, one row after the other; row k keeps its v, from k + 1 on.
// The update that one reflection asks for is made together with the first product that the next one needs.
POOL_INLINE void make_tridiagonal(Work& work) {
  const int64_t d = work.d;
  double largest = 0;
  for (int64_t i = 0; i < d; ++i)
    for (int64_t j = 0; j <= i; ++j) largest = std::max(largest, std::fabs(work.matrix[i * d + j]));
  int exponent = 0;
  std::frexp(largest, &exponent);
  work.scale = std::ldexp(1.0, largest > 0 ? std::min(exponent, 1023) : 0);
  for (int64_t i = 0; i < d; ++i)
    for (int64_t j = 0; j <= i; ++j) work.matrix[j * d + i] = work.matrix[i * d + j] /= work.scale;

  const double *v = nullptr, *w = nullptr;
  double *product = work.spare, *next = work.spare + d;
  double* const zeros = work.spare + 2 * d;
  std::fill(zeros, zeros + d, 0.0);
  v = w = zeros;
  for (int64_t k = 0; k < d; ++k) {
    double* const row = work.matrix + k * d;
    update(row + k, w + k, v + k, v[k], w[k], zeros + k, d - k);
    work.diagonal[k] = row[k];
    work.factors[k] = 0;
    work.off[k] = k + 1 < d ? row[k + 1] : 0;
    if (k + 2 >= d) continue;
    double* const u = row + k + 1;
    const int64_t left = d - k - 1;
    const double first = u[0], rest = dot<double>(u + 1, u + 1, left - 1);
    double factor = 0;
    if (rest > 0) {
      const double length = -std::copysign(std::sqrt(first * first + rest), first);
      const double inverse = 1 / (first - length);
      for (int64_t j = 1; j < left; ++j) u[j] *= inverse;
      factor = (length - first) / length;
      work.off[k] = length;
    } else {
      std::fill(u + 1, u + left, 0.0);
    }
    u[0] = 1;
    work.factors[k] = factor;
    for (int64_t i = k + 1; i < d; ++i)
      product[i] = factor * update(work.matrix + i * d + k + 1, w + k + 1, v + k + 1, v[i], w[i], u, left);
    const double half = factor / 2 * dot<double>(product + k + 1, u, left);
    for (int64_t j = k + 1; j < d; ++j) product[j] -= half * row[j];
    v = row;
    w = product;
    std::swap(product, next);
  }
}
POOL_TARGETS void tridiagonal(Work& work) { make_tridiagonal(work); }

// Goes on towards a diagonal until it is one, or until there is no room for the turns of another sweep. Collects
// nothing where it is one.
void collect(Work& work) {
  const int64_t d = work.d;
  Collection& to = work.coming;
  double *const diagonal = work.diagonal, *const off = work.off;
  to.turned = to.swept = 0;
  for (; work.at < d; ++work.at, work.tries = 0) {
    const int64_t l = work.at;
    for (;;) {
      int64_t m = l;
      // What is small beside its neighbours, or beside the whole matrix, is rounding.
      for (; m + 1 < d; ++m) {
        const double size = std::fabs(off[m]);
        if (size <= EPSILON * (std::fabs(diagonal[m]) + std::fabs(diagonal[m + 1])) || size <= EPSILON / 16) break;
      }
      if (m == l) break;
      if (to.turned + m - l > work.room || to.swept == work.room) return;
      if (work.tries++ == MOST_SWEEPS) {
        off[l] = 0;
        break;
      }
      double g = (diagonal[l + 1] - diagonal[l]) / (2 * off[l]), r = std::sqrt(g * g + 1);
      g = diagonal[m] - diagonal[l] + off[l] / (g + std::copysign(r, g));
      double s = 1, c = 1, p = 0;
      int64_t i = m - 1;
      Turn* turn = to.turns + to.turned;
      for (; i >= l; --i) {
        const double f = s * off[i], b = c * off[i];
        r = std::sqrt(f * f + g * g);
        off[i + 1] = r;
        if (r == 0) {
          diagonal[i + 1] -= p;
          off[m] = 0;
          break;
        }
        s = f / r;
        c = g / r;
        g = diagonal[i + 1] - p;
        r = (diagonal[i] - g) * s + 2 * c * b;
        p = s * r;
        diagonal[i + 1] = g + p;
        g = c * r - b;
        *turn++ = {c, s};
      }
      const int64_t count = turn - (to.turns + to.turned);
      to.sweeps[to.swept++] = {m, count};
      to.turned += count;
      if (i >= l) continue;
      diagonal[l] -= p;
      off[l] = g;
      off[m] = 0;
    }
  }
}

// Columns `first` to first + width of the transposed product of all reflections: (d, width).
template <int64_t width>
POOL_INLINE void reflect(const Work& work, int64_t first, double* block) {
  constexpr int64_t parts = width / Lanes<double>::count, step = Lanes<double>::count;
  const int64_t d = work.d;
  std::fill(block, block + d * width, 0.0);
  for (int64_t i = 0; i < width && first + i < d; ++i) block[(first + i) * width + i] = 1;
  for (int64_t k = 0; k + 2 < d; ++k) {
    if (work.factors[k] == 0) continue;
    const double* v = work.matrix + k * d;
    lanes<double> sums[parts] = {}, value;
    for (int64_t i = k + 1; i < d; ++i)
#pragma GCC unroll 8
      for (int64_t p = 0; p < parts; ++p) {
        load(value, static_cast<const double*>(block + i * width + p * step));
        sums[p] += v[i] * value;
      }
#pragma GCC unroll 8
    for (int64_t p = 0; p < parts; ++p) sums[p] *= work.factors[k];
    for (int64_t i = k + 1; i < d; ++i)
#pragma GCC unroll 8
      for (int64_t p = 0; p < parts; ++p) {
        double* const at = block + i * width + p * step;
        load(value, static_cast<const double*>(at));
        store(at, value - v[i] * sums[p]);
      }
  }
}

// Applies the collected turns to the rows of a block.
template <int64_t width>
POOL_INLINE void turn_rows(const Collection& from, double* block) {
  constexpr int64_t parts = width / Lanes<double>::count, step = Lanes<double>::count;
  const Turn* turn = from.turns;
  for (int64_t sweep = 0; sweep < from.swept; ++sweep) {
    double* row = block + from.sweeps[sweep].top * width;
    lanes<double> carried[parts], value;
#pragma GCC unroll 8
    for (int64_t p = 0; p < parts; ++p) load(carried[p], static_cast<const double*>(row + p * step));
    for (int64_t count = from.sweeps[sweep].count; count > 0; --count, row -= width, ++turn)
#pragma GCC unroll 8
      for (int64_t p = 0; p < parts; ++p) {
        load(value, static_cast<const double*>(row - width + p * step));
        store(row + p * step, turn->s * value + turn->c * carried[p]);
        carried[p] = turn->c * value - turn->s * carried[p];
      }
#pragma GCC unroll 8
    for (int64_t p = 0; p < parts; ++p) store(row + p * step, carried[p]);
  }
}

POOL_TARGETS void reflect_wide(const Work& work, int64_t first, double* block) { reflect<WIDE>(work, first, block); }
POOL_TARGETS void reflect_narrow(const Work& work, int64_t first, double* block) {
  reflect<NARROW>(work, first, block);
}
POOL_TARGETS void turn_wide(const Collection& from, double* block) { turn_rows<WIDE>(from, block); }
POOL_TARGETS void turn_narrow(const Collection& from, double* block) { turn_rows<NARROW>(from, block); }

}  // namespace

void eigen(const Call& call, int64_t batch, int64_t d, double* matrices, double* values, double* vectors) {
  if (batch == 0 || d == 0) return;
  const bool small = d <= 2 * NARROW;
  const int64_t width = small ? NARROW : WIDE, blocks = (d + width - 1) / width;
  const int64_t room = std::max(d, std::min(COLLECTED, d * d));
  const std::unique_ptr<Turn[]> turns(new Turn[size_t(2 * batch * room)]);
  const std::unique_ptr<Sweep[]> sweeps(new Sweep[size_t(2 * batch * room)]);
  const std::unique_ptr<double[]> rows(new double[size_t(batch * 5 * d)]);
  const std::unique_ptr<double[]> columns(new double[size_t(batch * d * blocks * width)]);
  const std::unique_ptr<Work[]> works(new Work[size_t(batch)]);
  const auto block_of = [&](int64_t item) { return columns.get() + item * d * width; };
  const auto collection = [&](int64_t i) {
    return Collection{turns.get() + i * room, sweeps.get() + i * room, 0, 0};
  };
  spread(call, batch, [&](int64_t i, int64_t) {
    double* const own = rows.get() + i * 5 * d;
    works[size_t(i)] = {d, matrices + i * d * d, values + i * d, own, own + d, own + 2 * d, 1.0, room,
                        collection(2 * i), collection(2 * i + 1), 0, 0};
    tridiagonal(works[size_t(i)]);
  });
  // While the turns of one collection are applied, the next one is made; before the first, columns are.
  bool begun = false;
  for (bool more = true; more; begun = true) {
    spread(call, batch + batch * blocks, [&](int64_t item, int64_t) {
      if (item < batch) return collect(works[size_t(item)]);
      const int64_t block = item - batch;
      const Work& work = works[size_t(block / blocks)];
      if (begun)
        (small ? turn_narrow : turn_wide)(work.ready, block_of(block));
      else
        (small ? reflect_narrow : reflect_wide)(work, block % blocks * width, block_of(block));
    });
    more = false;
    for (int64_t i = 0; i < batch; ++i) {
      std::swap(works[size_t(i)].ready, works[size_t(i)].coming);
      more = more || works[size_t(i)].ready.swept > 0;
    }
  }
  spread(call, batch * d, [&](int64_t row, int64_t) {
    const int64_t matrix = row / d, i = row % d;
    values[row] *= works[size_t(matrix)].scale;
    for (int64_t block = 0; block < blocks; ++block) {
      const double* from = block_of(matrix * blocks + block) + i * width;
      std::copy(from, from + std::min(width, d - block * width), vectors + row * d + block * width);
    }
  });
}

}  // namespace poolexport
