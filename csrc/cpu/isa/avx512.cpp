#if defined(__x86_64__)

#include "region.h"

SPARSECONV_BEGIN_REGION("avx512f,avx512dq,avx2,fma,f16c")

namespace sparseconv::avx512 {

#include "vec_avx512.h"

#include "../kernels/all.inl"

}  // namespace sparseconv::avx512

SPARSECONV_END_REGION

constinit const sparseconv::KernelTable sparseconv::kAvx512 = sparseconv::avx512::table("avx512");
constinit const sparseconv::KernelTable sparseconv::kAvx512Bf16 =
    sparseconv::avx512::table("avx512bf16", &sparseconv::kAvx512Bf16Blocks);
constinit const sparseconv::KernelTable sparseconv::kAmx =
    sparseconv::avx512::table("amx", &sparseconv::kAmxBlocks);

#endif
