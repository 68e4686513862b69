// The leading directions of a sample.
#pragma once

#include <numeric>

#include "core/subspace.h"

namespace poolexport {

inline int64_t directions_of(const Attributes& attributes) {
  const int64_t k = attributes.get<int64_t>("k");
  if (k < 1) refuse("k is %lld, and must be at least 1", static_cast<long long>(k));
  return k;
}

// Which vectors have the k largest values, the largest first, without those that are rounding beside it.
inline Shape leading(const Samples& s, int64_t sample, int64_t k) {
  const double* const squares = s.squares + sample * s.n;
  Shape order(static_cast<size_t>(s.n));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return squares[a] > squares[b]; });
  Shape kept;
  for (int64_t i : order)
    if (int64_t(kept.size()) < k && squares[i] > RANK_BOUND * RANK_BOUND * squares[order[0]]) kept.push_back(i);
  return kept;
}

}  // namespace poolexport
