// How the scratch memory of one kernel call is divided, in rows of 64 bytes.
#pragma once

#include "plan/layout.h"

namespace sparseconv {

// Sums that wait for the next channel block stay in this much L2; more rows come in blocks, for
// which the inputs are packed again (with 128 KB, twice at DSN's layer: fprop 2 % slower).
constexpr int64_t kAccBytes = 512 * 1024;
// Rows whose sums stay in L1 from the last entry to the output.
constexpr int64_t kStored = 8;

struct CorrelateScratch {
  int64_t row_block;
  int64_t stored;  // rows that are summed and then written, if there is one channel block
  int64_t input_rows;
  int64_t edge_rows;   // sums for the last output
  int64_t acc_stride;  // from the sums of one row to those of the next
  int64_t acc_rows;
  int64_t stage_rows;
};

struct WgradScratch {
  int64_t row_block;
  int64_t grad_channel_rows;
  int64_t input_rows;
  int64_t grad_rows;
  int64_t stage_rows;
};

CorrelateScratch plan_scratch(const Correlation& problem);
WgradScratch plan_scratch(const WeightGradient& problem);

}  // namespace sparseconv
