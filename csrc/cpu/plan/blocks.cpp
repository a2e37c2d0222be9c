#include "blocks.h"

#include <algorithm>
#include <numeric>

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

// An active (block, tap), for a block of outputs of a correlation.
struct ActiveTap {
  int32_t out_block;
  BlockEntry entry;
  BlockWeights weights;
};

BlockCorrelationPlan correlation_of(std::vector<ActiveTap> entries, int64_t n_blocks) {
  std::stable_sort(entries.begin(), entries.end(), [](const ActiveTap& a, const ActiveTap& b) {
    return a.out_block != b.out_block ? a.out_block < b.out_block
                                      : a.entry.position < b.entry.position;
  });
  BlockCorrelationPlan plan{{}, std::vector<int32_t>(n_blocks + 1), {}, 0, 0};
  for (const ActiveTap& e : entries) {
    const int64_t position = e.entry.position;
    plan.low = plan.entries.empty() ? position : std::min(plan.low, position);
    plan.high = plan.entries.empty() ? position : std::max(plan.high, position);
    plan.entries.push_back(e.entry);
    plan.weights.push_back(e.weights);
    ++plan.first[e.out_block + 1];
  }
  std::partial_sum(plan.first.begin(), plan.first.end(), plan.first.begin());
  return plan;
}

}  // namespace

int64_t BlockPlan::nbytes() const {
  int64_t bytes = bytes_of(wgrad.taps, wgrad.weights);
  for (const BlockCorrelationPlan& phase : dgrad) {
    bytes += bytes_of(phase.entries, phase.weights, phase.first);
  }
  return bytes + bytes_of(fprop.entries, fprop.weights, fprop.first);
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
  std::vector<ActiveTap> fprop;
  std::vector<std::vector<ActiveTap>> dgrad(g.stride);
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
        fprop.push_back({out_block, {in_block, static_cast<int32_t>(position)}, weights});
        dgrad[phase].push_back(
            {in_block, {out_block, static_cast<int32_t>(-(position / g.stride))}, weights});
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
  plan.fprop = correlation_of(std::move(fprop), ceil_div(g.out_channels, kBlockSize));
  for (std::vector<ActiveTap>& phase : dgrad) {
    plan.dgrad.push_back(correlation_of(std::move(phase), ceil_div(g.in_channels(), kBlockSize)));
  }
  return plan;
}

}  // namespace sparseconv
