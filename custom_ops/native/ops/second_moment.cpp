// SecondMoment: products of every two channels, summed or averaged over all locations; a covariance where centered.
#include <type_traits>

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
  bool centered;
  computed<T>* to;
};

// The mean is taken away twice, since the first time it is rounded.
template <class T>
POOL_INLINE void channels_of(const Job<T>& job, size_t first, size_t last) {
  using C = computed<T>;
  const int64_t m = job.locations;
  for (size_t row = first; row < last; ++row) {
    const T* from = job.x + int64_t(row) * m;
    C* to = job.to + int64_t(row) * m;
    for (int64_t i = 0; i < m; ++i) to[i] = widen(from[i]);
    for (int time = 0; time < 2 && job.centered; ++time) {
      const C mean = sum(to, m) / C(m);
      for (int64_t i = 0; i < m; ++i) to[i] -= mean;
    }
  }
}

POOL_FOR_EACH_ELEMENT(channels, Job)

struct SecondMoment final : Kernel {
  bool centered, divided;
  int64_t less = 0;

  explicit SecondMoment(const Attributes& attributes) : centered(attributes.get<int64_t>("centered") != 0) {
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
      using C = computed<T>;
      constexpr bool half = !std::is_same<T, C>::value;
      const Shape& shape = call.inputs[0].shape;
      const int64_t batch = shape[0], c = shape[1], m = shape[2];
      const T* x = call.inputs[0].as<T>();
      std::unique_ptr<C[]> copy, sums;
      const C* rows = nullptr;
      if (half || centered) {
        copy.reset(new C[size_t(batch * c * m)]);
        spread(call, batch * c, [&](int64_t row, int64_t) {
          channels(Job<T>{x, m, centered, copy.get()}, size_t(row), size_t(row) + 1);
        });
        rows = copy.get();
      } else if constexpr (!half) {
        rows = x;
      }
      T* const y = call.output<T>();
      C* products = nullptr;
      if constexpr (half) {
        sums.reset(new C[size_t(batch * c * c)]);
        products = sums.get();
      } else {
        products = y;
      }
      const View<C> view = dense(rows, c, m);
      multiply<C>(call, Product<C>{batch, c, c, m, view, view.turned(), products, true});
      const C divisor = divided ? C(m - less) : C(1);
      if (half || divided)
        for (int64_t i = 0; i < batch * c * c; ++i) y[i] = narrow<T>(products[i] / divisor);
    });
  }
};

}  // namespace

extern const Operator second_moment{"SecondMoment", {Type::SAME}, {Type::SAME}, create<SecondMoment>};

}  // namespace poolexport
