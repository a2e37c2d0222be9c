#include "blocks.h"

#include <algorithm>

namespace sparseconv {

namespace {

// What the scratch windows of a thread may take: half of the second cache of the CPUs with a matrix
// unit.
constexpr int64_t kWindowBytes = 1024 * 1024;

// Whether all kernels of each block have the same taps.
bool share_taps(const Geometry& g, const int32_t* pointers, const int32_t* taps) {
  const int64_t channels = g.channels_per_group;
  for (int64_t o = 0; o < g.out_channels; ++o) {
    for (int64_t c = 0; c < channels; ++c) {
      const int64_t leader = o / kBlockSize * kBlockSize * channels + c / kBlockSize * kBlockSize;
      const int32_t *mine = pointers + o * channels + c, *first = pointers + leader;
      if (mine[1] - mine[0] != first[1] - first[0] ||
          !std::equal(taps + mine[0], taps + mine[1], taps + first[0])) {
        return false;
      }
    }
  }
  return true;
}

// Sorts entries by block and position, and their weights with them.
void finish(BlockCorrelationPlan& plan, std::vector<int32_t> blocks, int64_t n_blocks) {
  std::vector<int32_t> order(blocks.size());
  for (std::size_t i = 0; i < order.size(); ++i) {
    order[i] = static_cast<int32_t>(i);
  }
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return blocks[a] != blocks[b] ? blocks[a] < blocks[b]
                                  : plan.entries[a].position < plan.entries[b].position;
  });
  BlockCorrelationPlan sorted{{}, std::vector<int32_t>(n_blocks + 1), {}, 0, 0};
  for (const int32_t i : order) {
    sorted.entries.push_back(plan.entries[i]);
    sorted.weights.push_back(plan.weights[i]);
    ++sorted.first[blocks[i] + 1];
  }
  for (int64_t b = 0; b < n_blocks; ++b) {
    sorted.first[b + 1] += sorted.first[b];
  }
  if (!sorted.entries.empty()) {
    const auto [low, high] = std::minmax_element(
        sorted.entries.begin(), sorted.entries.end(),
        [](const BlockEntry& a, const BlockEntry& b) { return a.position < b.position; });
    sorted.low = low->position;
    sorted.high = high->position;
  }
  plan = std::move(sorted);
}

}  // namespace

int64_t BlockPlan::nbytes() const {
  const auto bytes = [](const BlockCorrelationPlan& plan) {
    return plan.entries.size() * (sizeof(BlockEntry) + sizeof(BlockWeights)) +
           plan.first.size() * sizeof(int32_t);
  };
  std::size_t all = bytes(fprop) + wgrad.taps.size() * (sizeof(BlockTap) + sizeof(BlockWeights));
  for (const BlockCorrelationPlan& phase : dgrad) {
    all += bytes(phase);
  }
  return static_cast<int64_t>(all);
}

std::optional<BlockPlan> block_plan(const Geometry& g,
                                    const int32_t* pointers,
                                    const int32_t* taps) {
  const int64_t group_rows = g.out_channels / g.groups, channels = g.channels_per_group;
  const int64_t blocks = ceil_div(std::max(g.in_channels(), g.out_channels), kBlockSize);
  const int64_t window = kBlockWgradRows * g.stride + g.reach();
  if ((g.groups > 1 && (group_rows % kBlockSize != 0 || channels % kBlockSize != 0)) ||
      window * blocks * kBlockRowBytes > kWindowBytes || !share_taps(g, pointers, taps)) {
    return std::nullopt;
  }
  BlockPlan plan;
  plan.dgrad.resize(g.stride);
  std::vector<int32_t> out_blocks;
  std::vector<std::vector<int32_t>> in_blocks(g.stride);
  std::vector<int32_t> run_of(g.stride, -1);
  BlockWgradPlan& wgrad = plan.wgrad;
  wgrad.span = 0;
  for (int64_t o = 0; o < g.out_channels; o += kBlockSize) {
    for (int64_t c = 0; c < channels; c += kBlockSize) {
      const int32_t* kernel = pointers + o * channels + c;
      const int64_t group = o / group_rows;
      const auto out_block = static_cast<int32_t>(o / kBlockSize);
      const auto in_block = static_cast<int32_t>((group * channels + c) / kBlockSize);
      for (int32_t e = kernel[0]; e < kernel[1]; ++e) {
        const int64_t position = taps[e] * g.dilation, phase = position % g.stride;
        const BlockWeights weights{static_cast<int32_t>(o), static_cast<int32_t>(c), e - kernel[0],
                                   static_cast<int32_t>(std::min(kBlockSize, g.out_channels - o)),
                                   static_cast<int32_t>(std::min(kBlockSize, channels - c))};
        plan.fprop.entries.push_back({in_block, static_cast<int32_t>(position)});
        plan.fprop.weights.push_back(weights);
        out_blocks.push_back(out_block);
        BlockCorrelationPlan& dgrad = plan.dgrad[phase];
        dgrad.entries.push_back({out_block, static_cast<int32_t>(-(position - phase) / g.stride)});
        dgrad.weights.push_back(weights);
        in_blocks[phase].push_back(in_block);
        if (run_of[phase] < 0) {
          run_of[phase] = static_cast<int32_t>(wgrad.phases.size());
          wgrad.phases.push_back(static_cast<int32_t>(phase));
        }
        wgrad.span = std::max(wgrad.span, position / g.stride);
        wgrad.taps.push_back(
            {out_block, in_block, run_of[phase], static_cast<int32_t>(position / g.stride)});
        wgrad.weights.push_back(weights);
      }
    }
  }
  finish(plan.fprop, std::move(out_blocks), ceil_div(g.out_channels, kBlockSize));
  for (int64_t phase = 0; phase < g.stride; ++phase) {
    finish(plan.dgrad[phase], std::move(in_blocks[phase]), ceil_div(g.in_channels(), kBlockSize));
  }
  return plan;
}

}  // namespace sparseconv
