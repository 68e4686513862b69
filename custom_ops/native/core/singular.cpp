#include "core/singular.h"

#include <cmath>
#include <memory>

#include "core/eigen.h"
#include "core/gemm.h"
#include "core/lanes.h"
#include "core/spread.h"

namespace poolexport {
namespace {

//: What is below this share of the longest row, squared, is rounding.
constexpr double NOISE = 0x1p-90;
//: Convergence is quadratic below this cosine: two sweeps later all rows are orthogonal.
constexpr double SETTLED = 1e-9;
constexpr int MOST_SWEEPS = 40;

// Rows of one sample, the rows that are turned with them, and the products of all pairs of rows.
struct Rows {
  int64_t n, length, others;
  double *rows, *along, *products;
};

POOL_INLINE void rotate(double* __restrict p, double* __restrict q, double c, double s, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const double x = p[i], y = q[i];
    p[i] = c * x - s * y;
    q[i] = s * x + c * y;
  }
}

// Rotates the pairs of rows that are not orthogonal; answers their largest cosine before.
POOL_INLINE double sweep_of(const Rows& job) {
  const int64_t n = job.n;
  // What rounding leaves of a product of orthogonal rows.
  const double orthogonal = 0x1p-52 * std::max(4.0, std::sqrt(double(job.length)));
  double longest = 0;
  for (int64_t i = 0; i < n; ++i) longest = std::max(longest, job.products[i * n + i]);
  for (int64_t i = 0; i < n; ++i)
    if (!(job.products[i * n + i] > NOISE * longest))
      std::fill(job.rows + i * job.length, job.rows + (i + 1) * job.length, 0.0);
  double most = 0;
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = i + 1; j < n; ++j) {
      double *const a = job.products + i * n + i, *const b = job.products + j * n + j;
      if (!(*a > NOISE * longest) || !(*b > NOISE * longest)) continue;
      // Products with a row that has been rotated since are no longer true; the next sweep finds what is missed.
      const double size = std::sqrt(*a * *b);
      if (!(std::fabs(job.products[i * n + j]) > orthogonal * size)) continue;
      double *const p = job.rows + i * job.length, *const q = job.rows + j * job.length;
      const double g = dot<double>(p, q, job.length);
      if (!(std::fabs(g) > orthogonal * size)) continue;
      most = std::max(most, std::fabs(g) / size);
      const double ratio = (*b - *a) / (2 * g);
      const double t = std::copysign(1 / (std::fabs(ratio) + std::sqrt(ratio * ratio + 1)), ratio);
      const double c = 1 / std::sqrt(t * t + 1), s = c * t;
      rotate(p, q, c, s, job.length);
      if (job.others) rotate(job.along + i * job.others, job.along + j * job.others, c, s, job.others);
      *a = dot<double>(p, p, job.length);
      *b = dot<double>(q, q, job.length);
    }
  return most;
}
POOL_TARGETS double sweep(const Rows& job) { return sweep_of(job); }

}  // namespace

// The Gram matrix of the smaller side has eigenvectors V that make the rows of V X nearly orthogonal; its small values
// are rounding at the scale of the largest, squared, and so Jacobi's rotations finish the rows themselves.
void left_vectors(const Call& call, int64_t batch, int64_t c, int64_t m, const double* x, double* vectors,
                  double* squares) {
  const int64_t n = std::min(c, m);
  if (batch == 0 || n == 0) return;
  const bool wide = m > c;
  const int64_t length = wide ? m : c;
  const View<double> whole = dense(x, c, m), sides = wide ? whole : whole.turned();
  const std::unique_ptr<double[]> products(new double[size_t(batch * n * n)]), found(new double[size_t(batch * n * n)]);
  const std::unique_ptr<double[]> held(new double[size_t(wide ? batch * n * length : 0)]);
  // Settled sweeps that are left of each.
  const std::unique_ptr<int[]> left(new int[size_t(batch)]);
  std::fill(left.get(), left.get() + batch, 2);
  // Of wide matrices V itself holds the vectors, of others the rows do.
  double *const v = wide ? vectors : found.get(), *const rows = wide ? held.get() : vectors;
  multiply<double>(call, Product<double>{batch, n, n, length, sides, sides.turned(), products.get(), true});
  eigen(call, batch, n, products.get(), squares, v);
  multiply<double>(call, Product<double>{batch, n, length, n, dense<double>(v, n, n), sides, rows});
  const View<double> turning = dense<double>(rows, n, length);
  for (int time = 0; time < MOST_SWEEPS; ++time) {
    multiply<double>(call, Product<double>{batch, n, n, length, turning, turning.turned(), products.get(), true});
    spread(call, batch, [&](int64_t i, int64_t) {
      if (left[size_t(i)] == 0) return;
      const Rows job{n, length, wide ? n : 0, rows + i * n * length, v + i * n * n, products.get() + i * n * n};
      const double cosine = sweep(job);
      left[size_t(i)] = cosine == 0 ? 0 : cosine <= SETTLED ? left[size_t(i)] - 1 : 2;
    });
    if (std::all_of(left.get(), left.get() + batch, [](int each) { return each == 0; })) break;
  }
  spread(call, batch * n, [&](int64_t row, int64_t) {
    double* const at = rows + row * length;
    double square = 0;
    for (int64_t i = 0; i < length; ++i) square += at[i] * at[i];
    squares[row] = square;
    if (wide) return;
    const double inverse = square > 0 ? 1 / std::sqrt(square) : 0;
    for (int64_t i = 0; i < c; ++i) at[i] *= inverse;
  });
}

}  // namespace poolexport
