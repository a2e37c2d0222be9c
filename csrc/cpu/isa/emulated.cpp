#include <cmath>
#include <utility>

#include "../kernels.h"

namespace sparseconv::emulated {

#include "../kernels/numbers.inl"

#include "tiles_emulated.h"

#include "../kernels/blocks.inl"

}  // namespace sparseconv::emulated

constinit const sparseconv::BlockKernels sparseconv::kEmulatedBlocks = {
    sparseconv::emulated::correlate_blocks, sparseconv::emulated::block_wgrad};
