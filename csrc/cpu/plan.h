// Index work, done once per pattern: the scratch row of every active weight, and the transposed
// pattern with the place of each weight in `values`.
#pragma once

#include "../conv1d.h"

namespace sparseconv {

// The pattern is CSR: row o * channels_per_group + c of `pointers` owns taps. rows: (nnz,)
void plan_fprop(const Geometry& g, const int32_t* pointers, const int32_t* taps, int32_t* rows);

// Per phase of the stride, input channel and output channel of its group: to_pointers, (stride *
// n_kernels + 1,), and of each entry its row and its place in `values`, (nnz,).
void plan_dgrad(const Geometry& g,
                const int32_t* pointers,
                const int32_t* taps,
                int32_t* to_pointers,
                int32_t* rows,
                int32_t* index);

}  // namespace sparseconv
