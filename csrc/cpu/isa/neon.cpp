#if defined(__aarch64__)

#if defined(__GNUC__) && !defined(__clang__)
// Before registers are given, scheduling lets more numbers live than there are registers.
#pragma GCC optimize("no-schedule-insns")
#endif

#include <arm_neon.h>

#include <utility>

#include "../kernels.h"
#include "../scratch.h"

namespace sparseconv::neon {

#include "vec_neon.h"

#include "../kernels/all.inl"

}  // namespace sparseconv::neon

constinit const sparseconv::KernelTable sparseconv::kNeon = sparseconv::neon::table("neon");

#endif
