#include <cstdint>
#include <utility>

#include "half.h"
#include "kernels.h"
#include "layout.h"
#include "scratch.h"

namespace sparseconv {
namespace baseline {

#include "vec_baseline.h"

#include "vec_more_baseline.h"

#include "tile.inl"

#include "point_tile.inl"

#include "correlate.inl"

#include "wgrad.inl"

#include "columns.inl"

#include "pointwise.inl"

#include "batch_norm_relu.inl"

#include "pool.inl"

#include "peaks.inl"

}  // namespace baseline
}  // namespace sparseconv

namespace sparseconv {

const KernelTable kBaseline = {
    "baseline",
    {baseline::correlate<baseline::F32, float>, baseline::correlate<baseline::F64, double>,
     baseline::correlate<baseline::F32, Bf16>, baseline::correlate<baseline::F32, Half>},
    {baseline::wgrad<baseline::F32, float>, baseline::wgrad<baseline::F64, double>,
     baseline::wgrad<baseline::F32, Bf16>, baseline::wgrad<baseline::F32, Half>},
    {baseline::pointwise<baseline::F32>, baseline::pointwise<baseline::F64>},
    {baseline::pointwise_gradient<baseline::F32>, baseline::pointwise_gradient<baseline::F64>},
    {baseline::batch_norm_relu<baseline::F32>, baseline::batch_norm_relu<baseline::F64>},
    {baseline::batch_norm_relu_gradient<baseline::F32>,
     baseline::batch_norm_relu_gradient<baseline::F64>},
    {baseline::pool<baseline::F32, false>, baseline::pool<baseline::F64, false>},
    {baseline::pool<baseline::F32, true>, baseline::pool<baseline::F64, true>},
    {
        {baseline::peak_registers<baseline::F32>, baseline::peak_registers<baseline::F64>},
        {baseline::peak_loads<baseline::F32>, baseline::peak_loads<baseline::F64>},
        {baseline::peak_triad<baseline::F32>, baseline::peak_triad<baseline::F64>},
    },
};

}  // namespace sparseconv
