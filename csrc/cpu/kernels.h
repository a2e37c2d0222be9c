// The kernels of one instruction set, as a table. Each computes one of `parts` equal shares of
// the work, so threads live outside; `scratch` is private to the call.
#pragma once

#include "../conv1d.h"
#include "blocks.h"
#include "fused.h"
#include "rocket.h"

namespace sparseconv {

// Multiply-adds of a pass of `peak`: whole tiles of every instruction set's sums.
constexpr int64_t kPeakPass = 384;

// The half types as the kernels see them: 16 bits each. Arithmetic is always in float.
struct Half {
  uint16_t bits;
};
struct Bf16 {
  uint16_t bits;
};

// Convolutions by blocks, in bfloat16.
struct BlockKernels {
  void (*correlate)(const BlockCorrelation&, int64_t, int64_t, void*);
  void (*wgrad)(const BlockWeightGradient&, int64_t, int64_t, void*);
  // Tiles from begin to end. Of sums the second says whether all are finite.
  void (*pack)(const BlockPacking&, int64_t begin, int64_t end);
  bool (*unpack_sums)(const BlockPacking&, int64_t begin, int64_t end);
  void (*to_rows)(const RowConversion&, int64_t, int64_t, void*);
  void (*from_rows)(const RowConversion&, int64_t, int64_t, void*);
  void (*border_sums)(const BorderSums&, int64_t, int64_t, void*);
  void (*row_statistics)(const RowNorm&, int64_t, int64_t, void*);
  void (*row_sums)(const RowNorm&, int64_t, int64_t, void*);  // with gradients
  // Writes max(z, 0) or z; with gradients dz * scale + (x - centre) * slope + offset.
  void (*norm_rows)(const RowNorm&, int64_t, int64_t, void*);
  void (*pool_rows)(const RowPool&, int64_t, int64_t, void*);
};

struct KernelTable {
  const char* name;
  int64_t lanes;  // of float in a vector
  bool fma;       // whether a multiply-add is an instruction, and not imitated
  // Indexed by Element.
  void (*correlate[4])(const Correlation&, int64_t part, int64_t parts, void* scratch);
  void (*wgrad[4])(const WeightGradient&, int64_t part, int64_t parts, void* scratch);
  // float32 and float64 only.
  void (*pointwise[2])(const Pointwise&, int64_t, int64_t, void*);
  void (*pointwise_gradient[2])(const PointwiseGradient&, int64_t, int64_t, void*);
  void (*batch_norm_relu[2])(const BatchNormRelu&, int64_t, int64_t, void*);
  void (*batch_norm_relu_gradient[2])(const BatchNormReluGradient&, int64_t, int64_t, void*);
  void (*max_pool[2])(const MaxPool&, int64_t, int64_t, void*);
  void (*activate[2])(const Activation&, int64_t, int64_t, void*);
  void (*prelu[2])(const Prelu&, int64_t, int64_t, void*);
  void (*to_lanes[2])(const Conversion&, int64_t, int64_t, void*);
  void (*from_lanes[2])(const Conversion&, int64_t, int64_t, void*);
  void (*rocket)(const RocketFeatures&, int64_t, int64_t, void*);
  void (*minirocket)(const MiniRocketFeatures&, int64_t, int64_t, void*);
  double (*peak[2])(double operand, int64_t passes);
  // Of n positions from the first, n <= 2**16, draws the numbers and returns how many lie below the
  // limit: `below` has their offsets, and room for n + 15.
  int64_t (*draws)(const Draws&, uint32_t first, int64_t n, uint32_t* out, uint16_t* below);
  // float32, float64 and bfloat16.
  void (*dropout[3])(const Dropout&, int64_t, int64_t, void*);
  const BlockKernels* blocks;  // null without instructions that multiply pairs of bfloat16
};

extern const BlockKernels kAmxEmulatedBlocks, kAvx512Bf16EmulatedBlocks;
extern const KernelTable kBaseline, kAmxEmulated, kAvx512Bf16Emulated;
#if defined(__x86_64__)
extern const BlockKernels kAmxBlocks, kAvx512Bf16Blocks;
extern const KernelTable kAvx2, kAvx512, kAvx512Bf16, kAmx;
#elif defined(__aarch64__)
extern const KernelTable kNeon;
#endif

}  // namespace sparseconv
