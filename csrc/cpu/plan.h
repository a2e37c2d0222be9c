// Index work, done once per pattern: the scratch row of every active weight, and the transposed
// pattern with the place of each weight in `values`.
#pragma once

#include <cstdint>

namespace sparseconv {

// What a plan depends on. The pattern is CSR: row o * channels_per_group + c of `pointers` owns
// taps.
struct PlanShape {
  int64_t out_channels, channels_per_group, kernel_size, stride, dilation, groups;

  int64_t n_kernels() const { return out_channels * channels_per_group; }
};

// rows: (nnz,)
void plan_fprop(const PlanShape& shape,
                const int32_t* pointers,
                const int32_t* taps,
                int32_t* rows);

// Per phase of the stride, input channel and output channel of its group: to_pointers, (stride *
// n_kernels + 1,), and of each entry its row and its place in `values`, (nnz,).
void plan_dgrad(const PlanShape& shape,
                const int32_t* pointers,
                const int32_t* taps,
                int32_t* to_pointers,
                int32_t* rows,
                int32_t* index);

}  // namespace sparseconv
