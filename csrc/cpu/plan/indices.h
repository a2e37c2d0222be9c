// Index work, done once per pattern: the scratch row of every active weight, and the transposed
// pattern with the place of each weight in `values`.
#pragma once

#include "../../conv1d.h"

namespace sparseconv {

// The pattern is CSR: row o * channels_per_group + c of `pointers` owns taps. Entries of plans for
// fprop and dgrad are in the order of their records (conv1d.h), with kAhead spare rows at the end.
// rows: (nnz + kAhead,)
void plan_fprop(const Geometry& g, const int32_t* pointers, const int32_t* taps, int32_t* rows);

// Per phase of the stride, input channel and output channel of its group: to_pointers, (stride *
// n_kernels + 1,); of each entry its row, (nnz + kAhead,), and its place in `values`, (nnz,).
void plan_dgrad(const Geometry& g,
                const int32_t* pointers,
                const int32_t* taps,
                int32_t* to_pointers,
                int32_t* rows,
                int32_t* index);

// rows: (nnz,), in the order of `values`. batches: where those of each block begin, with space for
// as many blocks as channels; then all batches, by block, from the largest to the smallest, and by
// row, with space for as many as weights: the size depends on the shape and nnz alone.
void plan_wgrad(const Geometry& g,
                const int32_t* pointers,
                const int32_t* taps,
                int32_t* rows,
                int32_t* batches);
inline int64_t batches_size(const Geometry& g, int64_t nnz) {
  return g.channels_per_group + 1 + 3 * nnz;
}
inline const WeightBatch* batches_of(const Geometry& g, const int32_t* batches) {
  return reinterpret_cast<const WeightBatch*>(batches + g.channels_per_group + 1);
}

}  // namespace sparseconv
