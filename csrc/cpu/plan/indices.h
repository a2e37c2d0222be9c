// Index work, done once per pattern: where the active weights of each computation find their inputs
// in the scratch memory, and the transposed pattern with the place of each weight in `values`.
#pragma once

#include <vector>

#include "layout.h"

namespace sparseconv {

// The entries of a correlation by channel block and row (conv1d.h).
class PlannedEntries {
 public:
  // pointers: where the entries of each kernel begin, row after row, as their values stand.
  // tap_rows: the scratch row of each entry's tap, in its channel.
  PlannedEntries(const int32_t* pointers,
                 const std::vector<int32_t>& tap_rows,
                 int64_t n_rows,
                 int64_t channels_per_group,
                 int64_t groups,
                 const Layout& layout);
  Entries view() const;
  int64_t nbytes() const;

 private:
  std::vector<RowEntries> records_;
  std::vector<int32_t> rows_, first_, row_starts_;
  int64_t n_blocks_, channels_per_group_, groups_;
};

// fprop, or dgrad in some phases of the stride, with a row for each channel and phase.
struct CorrelationPlan {
  Layout layout;
  PlannedEntries entries;
};

struct DgradPlan {
  std::vector<CorrelationPlan> phases;
  std::vector<int32_t> index;  // of each entry, where its weight stands in `values`
};

struct WgradPlan {
  Layout layout;
  std::vector<int32_t> rows;  // scratch rows, in the order of `values`
  // By channel block, from the largest to the smallest, and by row; where those of a block begin.
  std::vector<WeightBatch> batches;
  std::vector<int32_t> block_starts, row_starts;

  int64_t nnz() const { return row_starts.back(); }
};

// The pattern is CSR: row o * channels_per_group + c of `pointers` owns taps.
CorrelationPlan fprop_plan(const Geometry& g,
                           const int32_t* pointers,
                           const int32_t* taps,
                           bool apart);
DgradPlan dgrad_plan(const Geometry& g, const int32_t* pointers, const int32_t* taps, bool apart);
WgradPlan wgrad_plan(const Geometry& g, const int32_t* pointers, const int32_t* taps, bool apart);

}  // namespace sparseconv
