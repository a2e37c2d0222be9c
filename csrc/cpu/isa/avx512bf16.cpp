#if defined(__x86_64__)

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

#include <immintrin.h>

#include <utility>

#include "../kernels.h"

#if defined(__clang__)
#pragma clang attribute push(                                                               \
    __attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,avx512bf16,avx2,fma,f16c"))), \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,avx512bf16,avx2,fma,f16c")
#endif

namespace sparseconv::avx512bf16 {

#include "../kernels/numbers.inl"

#include "vec_avx512.h"

#include "pairs_avx512.h"

#include "tiles_amx.h"

#include "../kernels/all_blocks.inl"

}  // namespace sparseconv::avx512bf16

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

constinit const sparseconv::BlockKernels sparseconv::kAmxBlocks =
    sparseconv::avx512bf16::block_table<sparseconv::avx512bf16::TileProducts>();
constinit const sparseconv::BlockKernels sparseconv::kAvx512Bf16Blocks =
    sparseconv::avx512bf16::block_table<sparseconv::avx512bf16::PairProducts>();

#endif
