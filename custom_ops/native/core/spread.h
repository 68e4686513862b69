// Items split among tasks.
#pragma once

#include <algorithm>

#include "core/operator.h"

namespace poolexport {

constexpr int64_t MOST_TASKS = int64_t(TASKS);

// Calls work(item, task) for every item below `items`, on all threads; each task has a run of items, and a number of
// its own below `most`.
template <class Work>
void spread(const Call& call, int64_t items, const Work& work, int64_t most = MOST_TASKS) {
  const auto run = [&](size_t first, size_t last, size_t task) {
    for (size_t item = first; item < last; ++item) work(int64_t(item), int64_t(task));
  };
  call.split(size_t(items), run, size_t(most));
}

}  // namespace poolexport
