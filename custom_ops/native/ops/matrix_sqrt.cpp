// MatrixSqrt: Newton-Schulz steps towards the square root of symmetric matrices. All that is multiplied commutes, so
// every product is symmetric.
#include <cmath>

#include "core/gemm.h"
#include "core/lanes.h"
#include "core/spread.h"
#include "core/square.h"

namespace poolexport {
namespace {

//: Bytes of one of four buffers, if it holds more than one matrix.
constexpr int64_t ROOM = int64_t{1} << 25;

template <class T>
struct Job {
  const T* s;
  int64_t d;
  bool frobenius;
  computed<T>*y, *scale;
};

// The matrix divided by its trace or its norm, which is kept.
template <class T>
POOL_INLINE void shares_of(const Job<T>& job, size_t, size_t) {
  using C = computed<T>;
  const int64_t d = job.d;
  C t = 0;
  for (int64_t i = 0; i < d; ++i) t += widen(job.s[i * d + i]);
  t = t == 0 ? C(1) : t;
  for (int64_t i = 0; i < d * d; ++i) job.y[i] = widen(job.s[i]) / t;
  if (job.frobenius) {
    // The trace keeps the squares in range.
    C square = 0;
    for (int64_t i = 0; i < d; ++i) square += dot<C>(job.y + i * d, job.y + i * d, d);
    t *= std::sqrt(square == 0 ? C(1) : square);
    for (int64_t i = 0; i < d * d; ++i) job.y[i] = widen(job.s[i]) / t;
  }
  *job.scale = t;
}

POOL_FOR_EACH_ELEMENT(shares, Job)

struct MatrixSqrt final : Kernel {
  int64_t iterations;
  bool frobenius;

  explicit MatrixSqrt(const Attributes& attributes) : iterations(attributes.get<int64_t>("iterations")) {
    const std::string norm = attributes.get<std::string>("norm");
    frobenius = norm == "frobenius";
    if (iterations < 1 || iterations > 10000)
      refuse("iterations is %lld, and must be from 1 to 10000", static_cast<long long>(iterations));
    if (!frobenius && norm != "trace") refuse("norm is '%s', and must be trace or frobenius", norm.c_str());
  }

  std::vector<Shape> shapes(const std::vector<Tensor>& inputs) const override {
    require_square(inputs[0].shape);
    return {inputs[0].shape};
  }

  void compute(Call& call) const override {
    with_element(call.inputs[0].type, [&](auto element) {
      using T = decltype(element);
      using C = computed<T>;
      const int64_t batch = call.inputs[0].shape[0], d = call.inputs[0].shape[1], size = d * d;
      const int64_t chunk = std::clamp<int64_t>(ROOM / (size * int64_t(sizeof(C))), 1, batch);
      const std::unique_ptr<C[]> room(new C[size_t(4 * chunk * size)]), scales(new C[size_t(chunk)]);
      for (int64_t first = 0; first < batch; first += chunk) {
        const int64_t some = std::min(chunk, batch - first);
        C *y = room.get(), *z = y + some * size, *towards = z + some * size, *free = towards + some * size;
        spread(call, some, [&](int64_t matrix, int64_t) {
          const T* s = call.inputs[0].as<T>() + (first + matrix) * size;
          shares(Job<T>{s, d, frobenius, y + matrix * size, scales.get() + matrix}, 0, 1);
        });
        const auto product = [&](const C* a, const C* b, C* out) {
          multiply<C>(call, Product<C>{some, d, d, d, dense(a, d, d), dense(b, d, d), out, true});
        };
        for (int64_t step = 0; step < iterations; ++step) {
          const bool last = step == iterations - 1;
          if (step > 0) product(z, y, towards);
          halve(call, step > 0 ? towards : y, some, d, towards);
          product(y, towards, free);
          std::swap(y, free);
          if (last) break;
          if (step > 0) {
            product(towards, z, free);
            std::swap(z, free);
          } else {
            std::copy(towards, towards + some * size, z);
          }
        }
        spread(call, some, [&](int64_t matrix, int64_t) {
          const C root = std::sqrt(scales[size_t(matrix)]);
          T* const to = call.output<T>() + (first + matrix) * size;
          for (int64_t i = 0; i < size; ++i) to[i] = narrow<T>(root * y[matrix * size + i]);
        });
      }
    });
  }

 private:
  // (3 I - a) / 2
  template <class C>
  static void halve(const Call& call, const C* a, int64_t matrices, int64_t d, C* to) {
    spread(call, matrices * d, [&](int64_t row, int64_t) {
      for (int64_t j = 0; j < d; ++j) {
        const int64_t i = row * d + j;
        to[i] = (C(j == row % d ? 3 : 0) - a[i]) / 2;
      }
    });
  }
};

}  // namespace

extern const Operator matrix_sqrt{"MatrixSqrt", {Type::SAME}, {Type::SAME}, create<MatrixSqrt>};

}  // namespace poolexport
