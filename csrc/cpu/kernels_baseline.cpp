#include <cstdint>
#include <utility>

#include "half.h"
#include "kernels.h"
#include "layout.h"
#include "scratch.h"

namespace sparseconv {
namespace baseline {

#include "vec_baseline.h"

#include "tile.inl"

#include "correlate.inl"

#include "wgrad.inl"

}  // namespace baseline
}  // namespace sparseconv

namespace sparseconv {

const KernelTable kBaseline = {
    "baseline",
    {baseline::correlate<baseline::F32, float>, baseline::correlate<baseline::F64, double>,
     baseline::correlate<baseline::F32, Bf16>, baseline::correlate<baseline::F32, Half>},
    {baseline::wgrad<baseline::F32, float>, baseline::wgrad<baseline::F64, double>,
     baseline::wgrad<baseline::F32, Bf16>, baseline::wgrad<baseline::F32, Half>},
};

}  // namespace sparseconv
