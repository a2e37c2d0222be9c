#include "plan.h"

#include <cstddef>
#include <vector>

#include "layout.h"

namespace sparseconv {

void plan_fprop(const Geometry& g, const int32_t* pointers, const int32_t* taps, int32_t* rows) {
  const Layout layout = fprop_layout(g);
  for (int64_t kernel = 0; kernel < g.n_kernels(); ++kernel) {
    const int64_t channel = kernel % g.channels_per_group;
    const int64_t base = channel % layout.block_channels * layout.channel_rows;
    for (int64_t e = pointers[kernel]; e < pointers[kernel + 1]; ++e) {
      rows[e] = static_cast<int32_t>(base + layout.tap_rows[taps[e]]);
    }
  }
}

void plan_dgrad(const Geometry& g,
                const int32_t* pointers,
                const int32_t* taps,
                int32_t* to_pointers,
                int32_t* rows,
                int32_t* index) {
  const int64_t group_rows = g.out_channels / g.groups;
  int32_t entry = 0;
  *to_pointers++ = 0;
  std::vector<int64_t> phase_taps;
  for (int64_t phase = 0; phase < g.stride; ++phase) {
    const Layout layout = dgrad_layout(g, phase, &phase_taps);
    std::vector<int32_t> tap_rows(g.kernel_size, -1);
    for (std::size_t i = 0; i < phase_taps.size(); ++i) {
      tap_rows[phase_taps[i]] = layout.tap_rows[i];
    }
    for (int64_t channel = 0; channel < g.in_channels(); ++channel) {
      const int64_t group = channel / g.channels_per_group;
      for (int64_t o = 0; o < group_rows; ++o) {
        const int64_t kernel =
            (group * group_rows + o) * g.channels_per_group + channel % g.channels_per_group;
        const int64_t base = o % layout.block_channels * layout.channel_rows;
        for (int32_t e = pointers[kernel]; e < pointers[kernel + 1]; ++e) {
          if (tap_rows[taps[e]] >= 0) {
            rows[entry] = static_cast<int32_t>(base + tap_rows[taps[e]]);
            index[entry++] = e;
          }
        }
        *to_pointers++ = entry;
      }
    }
  }
}

}  // namespace sparseconv
