#if defined(__x86_64__)

#include <immintrin.h>

#include <utility>

#include "../kernels.h"
#include "../scratch.h"

// Everything that this region compiles may use these instructions: only our own code, which is
// called through the table after the CPU was asked. Nothing of the STL may be instantiated in it.
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif

namespace sparseconv::avx2 {

#include "vec_avx2.h"

#include "../kernels/all.inl"

}  // namespace sparseconv::avx2

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

constinit const sparseconv::KernelTable sparseconv::kAvx2 = sparseconv::avx2::table("avx2");

#endif
