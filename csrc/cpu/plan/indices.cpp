#include "indices.h"

#include <algorithm>
#include <cstddef>
#include <vector>

#include "layout.h"

namespace sparseconv {

void plan_fprop(const Geometry& g, const int32_t* pointers, const int32_t* taps, int32_t* rows) {
  const Layout layout = fprop_layout(g);
  for (int64_t c0 = 0; c0 < g.channels_per_group; c0 += layout.block_channels) {
    const int64_t c1 = std::min(g.channels_per_group, c0 + layout.block_channels);
    for (int64_t o = 0; o < g.out_channels; ++o) {
      for (int64_t c = c0; c < c1; ++c) {
        const int32_t* kernel = pointers + o * g.channels_per_group + c;
        for (int32_t e = kernel[0]; e < kernel[1]; ++e) {
          *rows++ = static_cast<int32_t>((c - c0) * layout.channel_rows + layout.tap_rows[taps[e]]);
        }
      }
    }
  }
  std::fill_n(rows, kAhead, 0);
}

void plan_dgrad(const Geometry& g,
                const int32_t* pointers,
                const int32_t* taps,
                int32_t* to_pointers,
                int32_t* rows,
                int32_t* index) {
  const int64_t group_rows = g.out_channels / g.groups;
  *to_pointers = 0;
  std::vector<int64_t> phase_taps;
  for (int64_t phase = 0; phase < g.stride; ++phase) {
    const Layout layout = dgrad_layout(g, phase, &phase_taps);
    std::vector<int32_t> tap_rows(g.kernel_size, -1);
    for (std::size_t i = 0; i < phase_taps.size(); ++i) {
      tap_rows[phase_taps[i]] = layout.tap_rows[i];
    }
    for (int64_t o0 = 0; o0 < group_rows; o0 += layout.block_channels) {
      const int64_t o1 = std::min(group_rows, o0 + layout.block_channels);
      for (int64_t channel = 0; channel < g.in_channels(); ++channel) {
        const int64_t group = channel / g.channels_per_group;
        for (int64_t o = o0; o < o1; ++o) {
          const int64_t kernel =
              (group * group_rows + o) * g.channels_per_group + channel % g.channels_per_group;
          int32_t count = 0;
          for (int32_t e = pointers[kernel]; e < pointers[kernel + 1]; ++e) {
            if (tap_rows[taps[e]] >= 0) {
              *rows++ = static_cast<int32_t>((o - o0) * layout.channel_rows + tap_rows[taps[e]]);
              *index++ = e;
              ++count;
            }
          }
          to_pointers[channel * group_rows + o + 1] = count;
        }
      }
    }
    for (int64_t i = 0; i < g.n_kernels(); ++i) {
      to_pointers[i + 1] += to_pointers[i];
    }
    to_pointers += g.n_kernels();
  }
  std::fill_n(rows, kAhead, 0);
}

void plan_wgrad(const Geometry& g,
                const int32_t* pointers,
                const int32_t* taps,
                int32_t* rows,
                int32_t* batches) {
  const Layout layout = wgrad_layout(g);
  const int64_t n_blocks = ceil_div(g.channels_per_group, layout.block_channels);
  int32_t* const starts = batches;
  auto* const first_batch = reinterpret_cast<WeightBatch*>(batches + g.channels_per_group + 1);
  std::fill_n(batches, batches_size(g, pointers[g.n_kernels()]), 0);
  WeightBatch* next = first_batch;
  for (int64_t b = 0; b < n_blocks; ++b) {
    const int64_t c0 = b * layout.block_channels;
    const int64_t c1 = std::min(g.channels_per_group, c0 + layout.block_channels);
    for (int64_t o = 0; o < g.out_channels; ++o) {
      const int32_t* kernels = pointers + o * g.channels_per_group;
      const int32_t first = kernels[c0], n = kernels[c1] - first;
      const auto parts = static_cast<int32_t>(ceil_div(n, kBatchWeights));
      for (int32_t part = 0; part < parts; ++part) {  // near-equal
        const auto begin = static_cast<int32_t>(int64_t{n} * part / parts);
        const auto end = static_cast<int32_t>(int64_t{n} * (part + 1) / parts);
        *next++ = {static_cast<int32_t>(o), first + begin, end - begin};
      }
      for (int64_t c = c0; c < c1; ++c) {
        for (int32_t e = kernels[c]; e < kernels[c + 1]; ++e) {
          rows[e] = static_cast<int32_t>((c - c0) * layout.channel_rows + layout.tap_rows[taps[e]]);
        }
      }
    }
    // One size after the other: the kernel's loop is then predicted.
    std::stable_sort(first_batch + starts[b], next,
                     [](const WeightBatch& a, const WeightBatch& b) { return a.n > b.n; });
    starts[b + 1] = static_cast<int32_t>(next - first_batch);
  }
}

}  // namespace sparseconv
