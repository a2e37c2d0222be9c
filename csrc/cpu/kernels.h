// The kernels of one instruction set, as a table. Each computes one of `parts` equal shares of
// the work, so threads live outside; `scratch` is private to the call.
#pragma once

#include "../conv1d.h"
#include "fused.h"

namespace sparseconv {

using PeakLoop = void (*)(void* memory, int64_t bytes, int64_t passes, void* sink);

// The half types as the kernels see them: 16 bits each. Arithmetic is always in float.
struct Half {
  uint16_t bits;
};
struct Bf16 {
  uint16_t bits;
};

struct KernelTable {
  const char* name;
  // Indexed by Element.
  void (*correlate[4])(const Correlation&, int64_t part, int64_t parts, void* scratch);
  void (*wgrad[4])(const WeightGradient&, int64_t part, int64_t parts, void* scratch);
  // float32 and float64 only.
  void (*pointwise[2])(const Pointwise&, int64_t, int64_t, void*);
  void (*pointwise_gradient[2])(const PointwiseGradient&, int64_t, int64_t, void*);
  void (*batch_norm_relu[2])(const BatchNormRelu&, int64_t, int64_t, void*);
  void (*batch_norm_relu_gradient[2])(const BatchNormReluGradient&, int64_t, int64_t, void*);
  void (*pool[2])(const Pool&, int64_t, int64_t, void*);
  void (*pool_gradient[2])(const Pool&, int64_t, int64_t, void*);
  // What the machine reaches with these vectors, see peaks.h: registers, loads, triad.
  PeakLoop peaks[3][2];
};

extern const KernelTable kBaseline;
#if defined(__x86_64__)
extern const KernelTable kAvx2;
extern const KernelTable kAvx512;
#endif

}  // namespace sparseconv
