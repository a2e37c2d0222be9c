#if defined(__x86_64__)

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

#include <immintrin.h>

#include <utility>

#include "../kernels.h"

#if defined(__clang__)
#pragma clang attribute push(                                                          \
    __attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,avx512bf16,avx2,fma"))), \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,avx512bf16,avx2,fma")
#endif

namespace sparseconv::amx {

#include "../kernels/numbers.inl"

#include "tiles_amx.h"

#include "../kernels/blocks.inl"

#include "../kernels/block_packing.inl"

#include "../kernels/block_wgrad.inl"

#include "../kernels/rows.inl"

}  // namespace sparseconv::amx

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

constinit const sparseconv::BlockKernels sparseconv::kAmxBlocks = {
    sparseconv::amx::correlate_blocks, sparseconv::amx::block_wgrad,
    sparseconv::amx::pack_blocks,      sparseconv::amx::unpack_sums,
    sparseconv::amx::to_rows,          sparseconv::amx::from_rows,
    sparseconv::amx::border_sums,      sparseconv::amx::row_statistics,
    sparseconv::amx::row_sums,         sparseconv::amx::norm_rows};

#endif
