// Items split among tasks.
#pragma once

#include <algorithm>

#include "core/operator.h"

namespace poolexport {

//: More tasks than threads, so that all threads end together; the same number on every machine.
constexpr int64_t MOST_TASKS = 64;

// Calls work(item, task) for every item below `items`, on all threads; each task has a run of items, and a number of
// its own below `most`.
template <class Work>
void spread(const Call& call, int64_t items, const Work& work, int64_t most = MOST_TASKS) {
  const int64_t tasks = std::min(most, items);
  call.parallel(size_t(tasks), [&](size_t task) {
    for (int64_t item = items * int64_t(task) / tasks; item < items * int64_t(task + 1) / tasks; ++item)
      work(item, int64_t(task));
  });
}

}  // namespace poolexport
