#include <c10/util/Half.h>

#include <utility>

#include "../kernels.h"
#include "../scratch.h"

namespace sparseconv::baseline {

#include "vec_baseline.h"

#include "../kernels/all.inl"

}  // namespace sparseconv::baseline

constinit const sparseconv::KernelTable sparseconv::kBaseline =
    sparseconv::baseline::table("baseline", nullptr, sparseconv::baseline::kHasFma);
constinit const sparseconv::KernelTable sparseconv::kAmxEmulated =
    sparseconv::baseline::table("amx-emulated",
                                &sparseconv::kAmxEmulatedBlocks,
                                sparseconv::baseline::kHasFma);
constinit const sparseconv::KernelTable sparseconv::kAvx512Bf16Emulated =
    sparseconv::baseline::table("avx512bf16-emulated",
                                &sparseconv::kAvx512Bf16EmulatedBlocks,
                                sparseconv::baseline::kHasFma);
