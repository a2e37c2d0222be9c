#include <cmath>
#include <utility>

#include "../kernels.h"

namespace sparseconv::emulated {

#include "../kernels/numbers.inl"

#include "tiles_emulated.h"

#include "../kernels/all_blocks.inl"

}  // namespace sparseconv::emulated

constinit const sparseconv::BlockKernels sparseconv::kAmxEmulatedBlocks =
    sparseconv::emulated::block_table<sparseconv::emulated::TileProducts>();
constinit const sparseconv::BlockKernels sparseconv::kAvx512Bf16EmulatedBlocks =
    sparseconv::emulated::block_table<sparseconv::emulated::PairProducts>();
