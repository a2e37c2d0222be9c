#if defined(__x86_64__)

#include "region.h"

SPARSECONV_BEGIN_REGION("avx512f,avx512dq,avx512bw,avx512vl,avx512bf16,avx2,fma,f16c")

namespace sparseconv::avx512bf16 {

#include "../kernels/numbers.inl"

#include "vec_avx512.h"

#include "pairs_avx512.h"

#include "tiles_amx.h"

#include "../kernels/all_blocks.inl"

}  // namespace sparseconv::avx512bf16

SPARSECONV_END_REGION

constinit const sparseconv::BlockKernels sparseconv::kAmxBlocks =
    sparseconv::avx512bf16::block_table<sparseconv::avx512bf16::TileProducts>();
constinit const sparseconv::BlockKernels sparseconv::kAvx512Bf16Blocks =
    sparseconv::avx512bf16::block_table<sparseconv::avx512bf16::PairProducts>();

#endif
