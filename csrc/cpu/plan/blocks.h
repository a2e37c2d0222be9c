// The plans of patterns whose blocks of 16 x 16 channels share their taps.
#pragma once

#include <optional>
#include <vector>

#include "../blocks.h"
#include "layout.h"

namespace sparseconv {

struct BlockCorrelationPlan {
  std::vector<BlockEntry> entries;
  std::vector<int32_t> first;
  std::vector<BlockWeights> weights;  // of each entry
  int64_t low, high;
};

struct BlockWgradPlan {
  std::vector<BlockTap> taps;
  std::vector<int32_t> phases;
  std::vector<BlockWeights> weights;  // of each tap
  int64_t span;
};

struct BlockPlan {
  BlockCorrelationPlan fprop;
  std::vector<BlockCorrelationPlan> dgrad;  // one for each phase of the stride
  BlockWgradPlan wgrad;

  int64_t nbytes() const;
};

// None if the kernels of a block differ in their taps, if groups cut blocks, or if a window of the
// kernel's reach does not fit into the caches.
std::optional<BlockPlan> block_plan(const Geometry& g,
                                    const int32_t* pointers,
                                    const int32_t* taps);

}  // namespace sparseconv
