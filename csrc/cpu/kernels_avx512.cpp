#if defined(__x86_64__)

#if defined(__GNUC__) && !defined(__clang__)
// The intrinsics of gcc 12 leave operands undefined on purpose and are warned about for it.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#include <immintrin.h>

#include <cstdint>
#include <utility>

#include "half.h"
#include "kernels.h"
#include "layout.h"
#include "scratch.h"

// Everything the region below compiles may use these instructions: only our own code, which the
// table reaches after the CPU was asked. Nothing of the STL may be instantiated in it.
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx2,fma,f16c"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx2,fma,f16c")
#endif

namespace sparseconv {
namespace avx512 {

#include "vec_avx512.h"

#include "vec_more_avx512.h"

#include "tile.inl"

#include "point_tile.inl"

#include "correlate.inl"

#include "wgrad.inl"

#include "columns.inl"

#include "pointwise.inl"

#include "batch_norm_relu.inl"

#include "pool.inl"

#include "peaks.inl"

}  // namespace avx512
}  // namespace sparseconv

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace sparseconv {

const KernelTable kAvx512 = {
    "avx512",
    {avx512::correlate<avx512::F32, float>, avx512::correlate<avx512::F64, double>,
     avx512::correlate<avx512::F32, Bf16>, avx512::correlate<avx512::F32, Half>},
    {avx512::wgrad<avx512::F32, float>, avx512::wgrad<avx512::F64, double>,
     avx512::wgrad<avx512::F32, Bf16>, avx512::wgrad<avx512::F32, Half>},
    {avx512::pointwise<avx512::F32>, avx512::pointwise<avx512::F64>},
    {avx512::pointwise_gradient<avx512::F32>, avx512::pointwise_gradient<avx512::F64>},
    {avx512::batch_norm_relu<avx512::F32>, avx512::batch_norm_relu<avx512::F64>},
    {avx512::batch_norm_relu_gradient<avx512::F32>, avx512::batch_norm_relu_gradient<avx512::F64>},
    {avx512::pool<avx512::F32, false>, avx512::pool<avx512::F64, false>},
    {avx512::pool<avx512::F32, true>, avx512::pool<avx512::F64, true>},
    {
        {avx512::peak_registers<avx512::F32>, avx512::peak_registers<avx512::F64>},
        {avx512::peak_loads<avx512::F32>, avx512::peak_loads<avx512::F64>},
        {avx512::peak_triad<avx512::F32>, avx512::peak_triad<avx512::F64>},
    },
};

}  // namespace sparseconv

#endif
