#include "indices.h"

#include <algorithm>
#include <cstddef>

namespace sparseconv {

PlannedEntries::PlannedEntries(const int32_t* pointers,
                               const std::vector<int32_t>& tap_rows,
                               int64_t n_rows,
                               int64_t channels_per_group,
                               int64_t groups,
                               const Layout& layout)
    : n_blocks_(ceil_div(channels_per_group, layout.block_channels)),
      channels_per_group_(channels_per_group),
      groups_(groups) {
  rows_.reserve(tap_rows.size() + kAhead);
  records_.reserve(n_rows * n_blocks_);
  first_.reserve(n_blocks_ * (n_rows + 1));
  for (int64_t c0 = 0; c0 < channels_per_group; c0 += layout.block_channels) {
    const int64_t c1 = std::min(channels_per_group, c0 + layout.block_channels);
    for (int64_t row = 0; row < n_rows; ++row) {
      const int32_t* kernels = pointers + row * channels_per_group;
      const int32_t n = kernels[c1] - kernels[c0];
      first_.push_back(static_cast<int32_t>(records_.size()));
      if (n > 0) {
        records_.push_back(
            {static_cast<int32_t>(row), n, kernels[c0], static_cast<int32_t>(rows_.size())});
      }
      for (int64_t c = c0; c < c1; ++c) {
        for (int32_t e = kernels[c]; e < kernels[c + 1]; ++e) {
          rows_.push_back(static_cast<int32_t>((c - c0) * layout.channel_rows + tap_rows[e]));
        }
      }
    }
    first_.push_back(static_cast<int32_t>(records_.size()));
  }
  rows_.resize(rows_.size() + kAhead);
  for (int64_t row = 0; row <= n_rows; ++row) {
    row_starts_.push_back(pointers[row * channels_per_group]);
  }
}

int64_t PlannedEntries::nbytes() const {
  return bytes_of(records_, rows_, first_, row_starts_);
}

Entries PlannedEntries::view() const {
  return {records_.data(), first_.data(),       rows_.data(),
          n_blocks_,       channels_per_group_, static_cast<int64_t>(row_starts_.size()) - 1,
          groups_,         row_starts_.back(),  row_starts_.data()};
}

CorrelationPlan fprop_plan(const Geometry& g,
                           const int32_t* pointers,
                           const int32_t* taps,
                           bool apart) {
  Layout layout = fprop_layout(g, apart);
  std::vector<int32_t> tap_rows(pointers[g.n_kernels()]);
  std::transform(taps, taps + tap_rows.size(), tap_rows.begin(),
                 [&](int32_t tap) { return layout.tap_rows[tap]; });
  PlannedEntries entries(pointers, tap_rows, g.out_channels, g.channels_per_group, g.groups,
                         layout);
  return {std::move(layout), std::move(entries)};
}

DgradPlan dgrad_plan(const Geometry& g, const int32_t* pointers, const int32_t* taps, bool apart) {
  const int64_t group_rows = g.out_channels / g.groups;
  DgradPlan plan;
  plan.index.reserve(pointers[g.n_kernels()]);
  for (int64_t phase = 0; phase < g.stride; phase += kPhases) {
    const int64_t phases = std::min(kPhases, g.stride - phase), n_rows = g.in_channels() * phases;
    Layout layout = dgrad_layout(g, phase, phase + phases, apart);
    // By input channel, phase and output channel of the channel's group.
    std::vector<int32_t> starts{0}, tap_rows;
    starts.reserve(n_rows * group_rows + 1);
    for (int64_t row = 0; row < n_rows; ++row) {
      const int64_t channel = row / phases, own = phase + row % phases;
      const int64_t group = channel / g.channels_per_group;
      for (int64_t o = group * group_rows; o < (group + 1) * group_rows; ++o) {
        const int64_t kernel = o * g.channels_per_group + channel % g.channels_per_group;
        for (int32_t e = pointers[kernel]; e < pointers[kernel + 1]; ++e) {
          if (taps[e] * g.dilation % g.stride == own) {
            tap_rows.push_back(layout.tap_rows[taps[e]]);
            plan.index.push_back(e);
          }
        }
        starts.push_back(static_cast<int32_t>(tap_rows.size()));
      }
    }
    PlannedEntries entries(starts.data(), tap_rows, n_rows, group_rows, g.groups, layout);
    plan.phases.push_back({std::move(layout), std::move(entries)});
  }
  return plan;
}

WgradPlan wgrad_plan(const Geometry& g, const int32_t* pointers, const int32_t* taps, bool apart) {
  WgradPlan plan{wgrad_layout(g, apart), {}, {}, {0}, {}};
  plan.rows.resize(pointers[g.n_kernels()]);
  for (int64_t row = 0; row <= g.out_channels; ++row) {
    plan.row_starts.push_back(pointers[row * g.channels_per_group]);
  }
  const Layout& layout = plan.layout;
  for (int64_t c0 = 0; c0 < g.channels_per_group; c0 += layout.block_channels) {
    const int64_t c1 = std::min(g.channels_per_group, c0 + layout.block_channels);
    for (int64_t o = 0; o < g.out_channels; ++o) {
      const int32_t* kernels = pointers + o * g.channels_per_group;
      const int32_t first = kernels[c0], n = kernels[c1] - first;
      const auto parts = static_cast<int32_t>(ceil_div(n, kBatchWeights));
      for (int32_t part = 0; part < parts; ++part) {  // near-equal
        const auto begin = static_cast<int32_t>(int64_t{n} * part / parts);
        const auto end = static_cast<int32_t>(int64_t{n} * (part + 1) / parts);
        plan.batches.push_back({static_cast<int32_t>(o), first + begin, end - begin});
      }
      for (int64_t c = c0; c < c1; ++c) {
        for (int32_t e = kernels[c]; e < kernels[c + 1]; ++e) {
          plan.rows[e] =
              static_cast<int32_t>((c - c0) * layout.channel_rows + layout.tap_rows[taps[e]]);
        }
      }
    }
    // One size after the other: the kernel's loop is then predicted.
    std::stable_sort(plan.batches.begin() + plan.block_starts.back(), plan.batches.end(),
                     [](const WeightBatch& a, const WeightBatch& b) { return a.n > b.n; });
    plan.block_starts.push_back(static_cast<int32_t>(plan.batches.size()));
  }
  return plan;
}

}  // namespace sparseconv
