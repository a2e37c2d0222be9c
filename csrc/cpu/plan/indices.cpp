#include "indices.h"

#include <algorithm>
#include <cstddef>

namespace sparseconv {

BlockEntries::BlockEntries(const int32_t* pointers,
                           std::vector<int32_t> rows,
                           int64_t n_rows,
                           int64_t channels_per_group,
                           int64_t groups,
                           const Layout& layout,
                           bool gathered)
    : rows_(std::move(rows)),
      n_blocks_(ceil_div(channels_per_group, layout.block_channels)),
      channels_per_group_(channels_per_group),
      groups_(groups) {
  rows_.resize(rows_.size() + kAhead);
  int32_t offset = 0;
  records_.reserve(n_rows * n_blocks_);
  first_.reserve(n_blocks_ * (n_rows + 1));
  for (int64_t b = 0; b < n_blocks_; ++b) {
    const int64_t c0 = b * layout.block_channels;
    const int64_t c1 = std::min(channels_per_group, c0 + layout.block_channels);
    for (int64_t row = 0; row < n_rows; ++row) {
      const int32_t* kernels = pointers + row * channels_per_group;
      const int32_t n = kernels[c1] - kernels[c0];
      first_.push_back(static_cast<int32_t>(records_.size()));
      if (n > 0) {
        records_.push_back({static_cast<int32_t>(row), n, gathered ? offset : kernels[c0], offset});
      }
      offset += n;
    }
    first_.push_back(static_cast<int32_t>(records_.size()));
  }
  for (int64_t row = 0; row <= n_rows; ++row) {
    row_starts_.push_back(pointers[row * channels_per_group]);
  }
}

int64_t BlockEntries::nbytes() const {
  return static_cast<int64_t>(records_.size() * sizeof(RowEntries) +
                              (rows_.size() + first_.size() + row_starts_.size()) *
                                  sizeof(int32_t));
}

Entries BlockEntries::view() const {
  return {records_.data(), first_.data(),       rows_.data(),
          n_blocks_,       channels_per_group_, static_cast<int64_t>(row_starts_.size()) - 1,
          groups_,         row_starts_.back(),  row_starts_.data()};
}

CorrelationPlan fprop_plan(const Geometry& g, const int32_t* pointers, const int32_t* taps) {
  Layout layout = fprop_layout(g);
  std::vector<int32_t> rows;
  rows.reserve(pointers[g.n_kernels()] + kAhead);
  for (int64_t c0 = 0; c0 < g.channels_per_group; c0 += layout.block_channels) {
    const int64_t c1 = std::min(g.channels_per_group, c0 + layout.block_channels);
    for (int64_t o = 0; o < g.out_channels; ++o) {
      for (int64_t c = c0; c < c1; ++c) {
        const int32_t* kernel = pointers + o * g.channels_per_group + c;
        for (int32_t e = kernel[0]; e < kernel[1]; ++e) {
          rows.push_back(
              static_cast<int32_t>((c - c0) * layout.channel_rows + layout.tap_rows[taps[e]]));
        }
      }
    }
  }
  BlockEntries entries(pointers, std::move(rows), g.out_channels, g.channels_per_group, g.groups,
                       layout, false);
  return {std::move(layout), std::move(entries)};
}

DgradPlan dgrad_plan(const Geometry& g, const int32_t* pointers, const int32_t* taps) {
  const int64_t group_rows = g.out_channels / g.groups;
  DgradPlan plan;
  plan.index.reserve(pointers[g.n_kernels()]);
  std::vector<int64_t> phase_taps;
  for (int64_t phase = 0; phase < g.stride; phase += kPhases) {
    const int64_t past = std::min(phase + kPhases, g.stride),
                  n_rows = g.in_channels() * (past - phase);
    Layout layout = dgrad_layout(g, phase, past, &phase_taps);
    std::vector<int32_t> tap_rows(g.kernel_size, -1);
    for (std::size_t i = 0; i < phase_taps.size(); ++i) {
      tap_rows[phase_taps[i]] = layout.tap_rows[i];
    }
    // By input channel, phase and output channel of the channel's group.
    std::vector<int32_t> starts(n_rows * group_rows + 1), rows;
    for (int64_t o0 = 0; o0 < group_rows; o0 += layout.block_channels) {
      const int64_t o1 = std::min(group_rows, o0 + layout.block_channels);
      for (int64_t row = 0; row < n_rows; ++row) {
        const int64_t channel = row / (past - phase), own = phase + row % (past - phase);
        const int64_t group = channel / g.channels_per_group;
        for (int64_t o = o0; o < o1; ++o) {
          const int64_t kernel =
              (group * group_rows + o) * g.channels_per_group + channel % g.channels_per_group;
          const std::size_t before = rows.size();
          for (int32_t e = pointers[kernel]; e < pointers[kernel + 1]; ++e) {
            if (taps[e] * g.dilation % g.stride == own) {
              rows.push_back(
                  static_cast<int32_t>((o - o0) * layout.channel_rows + tap_rows[taps[e]]));
              plan.index.push_back(e);
            }
          }
          starts[row * group_rows + o + 1] = static_cast<int32_t>(rows.size() - before);
        }
      }
    }
    for (int64_t i = 0; i < n_rows * group_rows; ++i) {
      starts[i + 1] += starts[i];
    }
    BlockEntries entries(starts.data(), std::move(rows), n_rows, group_rows, g.groups, layout,
                         true);
    plan.phases.push_back({std::move(layout), std::move(entries)});
  }
  return plan;
}

WgradPlan wgrad_plan(const Geometry& g, const int32_t* pointers, const int32_t* taps) {
  WgradPlan plan{wgrad_layout(g), {}, {}, {0}, {}};
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
