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
constinit const sparseconv::KernelTable sparseconv::kEmulated =
    sparseconv::baseline::table("amx-emulated",
                                &sparseconv::kEmulatedBlocks,
                                sparseconv::baseline::kHasFma);
