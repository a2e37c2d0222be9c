#include <cmath>
#include <utility>

#include "../kernels.h"

namespace sparseconv::emulated {

#include "../kernels/numbers.inl"

#include "tiles_emulated.h"

#include "../kernels/blocks.inl"

#include "../kernels/block_packing.inl"

#include "../kernels/block_wgrad.inl"

#include "../kernels/rows.inl"

}  // namespace sparseconv::emulated

constinit const sparseconv::BlockKernels sparseconv::kEmulatedBlocks = {
    sparseconv::emulated::correlate_blocks, sparseconv::emulated::block_wgrad,
    sparseconv::emulated::pack_blocks,      sparseconv::emulated::unpack_sums,
    sparseconv::emulated::to_rows,          sparseconv::emulated::from_rows,
    sparseconv::emulated::border_sums,      sparseconv::emulated::row_statistics,
    sparseconv::emulated::row_sums,         sparseconv::emulated::norm_rows};
