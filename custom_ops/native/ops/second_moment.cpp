// SecondMoment: products of every two channels, summed or averaged over all locations; a covariance where centered.
//
// All in float64, like the other sums of products: those of float32 that pass its range on the way come back.
#include "core/gemm.h"
#include "core/lanes.h"
#include "core/spread.h"
#include "core/square.h"

namespace poolexport {
namespace {

template <class T>
struct Job {
  const T* x;
  int64_t locations;
  double* to;
};

// The mean is taken away twice, since the first time it is rounded.
template <class T>
POOL_INLINE void centered_of(const Job<T>& job, size_t first, size_t last) {
  const int64_t m = job.locations;
  for (size_t row = first; row < last; ++row) {
    const T* from = job.x + int64_t(row) * m;
    double* to = job.to + int64_t(row) * m;
    for (int64_t i = 0; i < m; ++i) to[i] = double(widen(from[i]));
    for (int time = 0; time < 2; ++time) {
      const double mean = sum(to, m) / double(m);
      for (int64_t i = 0; i < m; ++i) to[i] -= mean;
    }
  }
}

POOL_FOR_EACH_ELEMENT(centered, Job)

struct SecondMoment final : Kernel {
  bool subtracted, divided;
  int64_t less = 0;

  explicit SecondMoment(const Attributes& attributes) : subtracted(attributes.get<int64_t>("centered") != 0) {
    const std::string divisor = attributes.get<std::string>("divisor");
    divided = divisor != "one";
    if (divisor == "count_minus_one")
      less = 1;
    else if (divisor != "count" && divided)
      refuse("divisor is '%s', and must be count, count_minus_one or one", divisor.c_str());
  }

  std::vector<Shape> shapes(const std::vector<Tensor>& inputs) const override {
    const Shape& x = inputs[0].shape;
    require_sequences(x);
    return {{x[0], x[1], x[1]}};
  }

  void compute(Call& call) const override {
    with_element(call.inputs[0].type, [&](auto element) {
      using T = decltype(element);
      const int64_t channels = call.inputs[0].shape[0] * call.inputs[0].shape[1], m = call.inputs[0].shape[2];
      const T* const x = call.inputs[0].as<T>();
      if (!subtracted) return multiply_rows(call, x, call.output<T>());
      const std::unique_ptr<double[]> rows(new double[size_t(channels * m)]);
      const Job<T> job{x, m, rows.get()};
      spread(call, channels, [&](int64_t row, int64_t) { centered(job, size_t(row), size_t(row) + 1); });
      multiply_rows<double>(call, rows.get(), call.output<T>());
    });
  }

 private:
  template <class T, class Out>
  void multiply_rows(const Call& call, const T* rows, Out* y) const {
    const int64_t batch = call.inputs[0].shape[0], c = call.inputs[0].shape[1], m = call.inputs[0].shape[2];
    const View<T> view = dense(rows, c, m);
    const double divisor = divided ? double(m - less) : 1;
    multiply<double>(call, Product<T, Out>{batch, c, c, m, view, view.turned(), y, true, divisor});
  }
};

}  // namespace

extern const Operator second_moment{"SecondMoment", {Type::SAME}, {Type::SAME}, create<SecondMoment>};

}  // namespace poolexport
