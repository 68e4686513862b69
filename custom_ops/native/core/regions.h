// Regions of maps: along every spatial axis one run of cells per output, of whatever length, and what they reduce to.
#pragma once

#include <vector>

#include "core/operator.h"

namespace poolexport {

// The cells first ... end - 1 of an axis.
struct Run {
  int64_t first, end;
};

// Where the regions of all maps lie. There are three spatial axes; maps of fewer have leading ones of length 1.
class Regions {
 public:
  //: Cells, and runs, along every axis.
  int64_t length[3], output[3];
  //: Of the output (n, c), input map maps[n], or n where there are none, and set n * per_map + c * per_channel of runs.
  std::vector<int64_t> maps;
  int64_t per_map = 0, per_channel = 0;
  int64_t channels, planes;

  // For an input and an output of these shapes; the runs of missing axes are there, the others are to be filled in.
  Regions(const Shape& x, const Shape& y, int64_t sets = 1);

  // The runs of a set along a spatial axis of the input, 0 for the first of those it has.
  Run* runs(int64_t set, size_t axis) { return along(set, axis + 3 - rank_); }
  // To be called when all runs are filled in: refuses those that leave the map, and those without cells.
  void close(bool may_be_empty = false);

  // What the loops read.
  struct Set {
    const Run* runs[3];
    //: The cells of the last axis that any run holds, and the largest power of 2 that no run is shorter than.
    int64_t begin, end, step;
    //: Where every run of the last axis begins its first step and its last one, counted from begin; empty runs at 0.
    const int32_t *first, *last;
    //: Whether these two steps are all of every run, and whether they are the same one.
    bool two_steps, one_step;
    //: Cells from one run to the next where that is the same everywhere, else 0.
    int64_t stride;
  };
  const Set& set(int64_t n, int64_t c) const { return sets_[size_t(n * per_map + c * per_channel)]; }
  int64_t plane(int64_t n, int64_t c) const { return (maps.empty() ? n : maps[size_t(n)]) * channels + c; }
  int64_t plane_size() const { return length[0] * length[1] * length[2]; }
  int64_t rows() const { return planes * output[0] * output[1]; }

 private:
  Run* along(int64_t set, size_t axis);

  size_t rank_;
  std::vector<Run> runs_;
  std::vector<int32_t> steps_;
  std::vector<Set> sets_;
};

// The largest cell of every region; NaN where a region holds one, 0 where it is empty. Or 0 where that is the larger.
void largest_of_regions(Call& call, const Regions& regions, bool from_zero = false);
// And its position in the plane, as a second output: the first of equal cells, the last NaN. No region is empty.
void first_largest_of_regions(Call& call, const Regions& regions);
// The sum of every region in float64, divided by the number of its cells, or by a product of one number for each spatial
// axis of the input. 0 where a region is empty.
void means_of_regions(Call& call, const Regions& regions, const std::vector<int64_t>& divisors = {});

}  // namespace poolexport
