#if defined(__x86_64__)

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
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif

namespace sparseconv {
namespace avx2 {

#include "vec_avx2.h"

#include "vec_more_avx2.h"

#include "tile.inl"

#include "point_tile.inl"

#include "correlate.inl"

#include "wgrad.inl"

#include "columns.inl"

#include "pointwise.inl"

#include "batch_norm_relu.inl"

#include "pool.inl"

#include "peaks.inl"

}  // namespace avx2
}  // namespace sparseconv

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace sparseconv {

const KernelTable kAvx2 = {
    "avx2",
    {avx2::correlate<avx2::F32, float>, avx2::correlate<avx2::F64, double>,
     avx2::correlate<avx2::F32, Bf16>, avx2::correlate<avx2::F32, Half>},
    {avx2::wgrad<avx2::F32, float>, avx2::wgrad<avx2::F64, double>, avx2::wgrad<avx2::F32, Bf16>,
     avx2::wgrad<avx2::F32, Half>},
    {avx2::pointwise<avx2::F32>, avx2::pointwise<avx2::F64>},
    {avx2::pointwise_gradient<avx2::F32>, avx2::pointwise_gradient<avx2::F64>},
    {avx2::batch_norm_relu<avx2::F32>, avx2::batch_norm_relu<avx2::F64>},
    {avx2::batch_norm_relu_gradient<avx2::F32>, avx2::batch_norm_relu_gradient<avx2::F64>},
    {avx2::pool<avx2::F32, false>, avx2::pool<avx2::F64, false>},
    {avx2::pool<avx2::F32, true>, avx2::pool<avx2::F64, true>},
    {
        {avx2::peak_registers<avx2::F32>, avx2::peak_registers<avx2::F64>},
        {avx2::peak_loads<avx2::F32>, avx2::peak_loads<avx2::F64>},
        {avx2::peak_triad<avx2::F32>, avx2::peak_triad<avx2::F64>},
    },
};

}  // namespace sparseconv

#endif
