#if defined(__x86_64__)

#if defined(__GNUC__) && !defined(__clang__)
// The intrinsics of gcc 12 leave operands undefined on purpose and are warned about for it.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

#include <immintrin.h>

#include <utility>

#include "../kernels.h"
#include "../scratch.h"

// Everything that this region compiles may use these instructions: only our own code, which is
// called through the table after the CPU was asked. Nothing of the STL may be instantiated in it.
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx2,fma,f16c"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx2,fma,f16c")
#endif

namespace sparseconv::avx512 {

#include "vec_avx512.h"

#include "../kernels/all.inl"

}  // namespace sparseconv::avx512

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

constinit const sparseconv::KernelTable sparseconv::kAvx512 = sparseconv::avx512::table("avx512");
constinit const sparseconv::KernelTable sparseconv::kAvx512Bf16 =
    sparseconv::avx512::table("avx512bf16", &sparseconv::kAvx512Bf16Blocks);
constinit const sparseconv::KernelTable sparseconv::kAmx =
    sparseconv::avx512::table("amx", &sparseconv::kAmxBlocks);

#endif
