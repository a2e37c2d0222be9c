#if defined(__x86_64__)

#include "region.h"

SPARSECONV_BEGIN_REGION("avx2,fma,f16c")

namespace sparseconv::avx2 {

#include "vec_avx2.h"

#include "../kernels/all.inl"

}  // namespace sparseconv::avx2

SPARSECONV_END_REGION

constinit const sparseconv::KernelTable sparseconv::kAvx2 = sparseconv::avx2::table("avx2");

#endif
