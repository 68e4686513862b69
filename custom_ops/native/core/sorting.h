// Networks that sort windows of cells: all windows of a block at once, rows of cells against rows.
#pragma once

#include <vector>

#include "core/window.h"

namespace poolexport {

// Puts the larger of two cells on `high` and the smaller on `low`; one of them may not be wanted.
struct Comparator {
  int32_t high, low;
  bool larger, smaller;
};

//: Networks of more cells take longer to make than anybody waits for; bodies of standard operators have no such.
constexpr int64_t SORTABLE = int64_t{1} << 16;

inline void require_sortable(int64_t size) {
  if (size > SORTABLE)
    refuse("a window of %lld cells cannot be sorted; there may be %lld", static_cast<long long>(size),
           static_cast<long long>(SORTABLE));
}

// Batcher's odd-even merge sort of `size` cells in descending order, without what the wanted ranks do not need.
inline std::vector<Comparator> sorting_network(int64_t size, std::vector<bool> wanted) {
  std::vector<Comparator> network;
  for (int64_t run = 1; run < size; run *= 2)
    for (int64_t gap = run; gap > 0; gap /= 2)
      for (int64_t start = gap % run; start + gap < size; start += 2 * gap)
        for (int64_t i = start; i < start + gap && i + gap < size; ++i)
          if (i / (2 * run) == (i + gap) / (2 * run))
            network.push_back({int32_t(i), int32_t(i + gap), true, true});
  std::vector<Comparator> needed;
  for (size_t n = network.size(); n-- > 0;) {
    Comparator c = network[n];
    c.larger = wanted[size_t(c.high)];
    c.smaller = wanted[size_t(c.low)];
    if (!c.larger && !c.smaller) continue;
    wanted[size_t(c.high)] = wanted[size_t(c.low)] = true;
    needed.push_back(c);
  }
  return {needed.rbegin(), needed.rend()};
}

// Sorts the rows of a block. Windows that hold NaN are left in any order.
template <class C>
POOL_INLINE void sort_rows(const std::vector<Comparator>& network, int64_t rows, C* cells, int64_t width) {
  const int64_t end = whole_pieces(cells, rows, width);
  for (const Comparator& c : network) {
    C* __restrict const high = cells + c.high * BLOCK;
    C* __restrict const low = cells + c.low * BLOCK;
    if (c.larger && c.smaller)
      for (int64_t start = 0; start < end; start += PIECE)
        for (int64_t i = start; i < start + PIECE; ++i) {
          const C a = high[i], b = low[i];
          high[i] = a > b ? a : b;
          low[i] = a < b ? a : b;
        }
    else if (c.larger)
      for (int64_t start = 0; start < end; start += PIECE)
        for (int64_t i = start; i < start + PIECE; ++i) high[i] = high[i] > low[i] ? high[i] : low[i];
    else
      for (int64_t start = 0; start < end; start += PIECE)
        for (int64_t i = start; i < start + PIECE; ++i) low[i] = high[i] < low[i] ? high[i] : low[i];
  }
}

// NaN for windows that hold one, and 0 for all others.
template <class C>
POOL_INLINE void find_nan(int64_t rows, const C* __restrict cells, int64_t width, C* __restrict spoilt) {
  for (int64_t i = 0; i < width; ++i) spoilt[i] = 0;
  for (int64_t k = 0; k < rows; ++k)
    for (int64_t i = 0; i < width; ++i) {
      const C cell = cells[k * BLOCK + i];
      spoilt[i] = cell != cell ? cell : spoilt[i];
    }
}

// The sums of sorted rows, each times weight(k); cells without weight add nothing, whatever they hold, and `spoilt` is NaN
// where a window holds one.
template <class C, class Weight>
POOL_INLINE void weigh_rows(const Weight& weight, int64_t rows, const C* cells, const C* spoilt, C* sum, int64_t width) {
  bool none = true;
  for (int64_t i = 0; i < width; ++i) sum[i] = 0;
  for (int64_t k = 0; k < rows; ++k) {
    const C each = weight(k), *cell = cells + k * BLOCK;
    if (each == 0) continue;
    none = false;
    for (int64_t i = 0; i < width; ++i) sum[i] += each * cell[i];
  }
  for (int64_t i = 0; i < width; ++i) sum[i] = none ? C(0) : sum[i] + spoilt[i];
}

}  // namespace poolexport
