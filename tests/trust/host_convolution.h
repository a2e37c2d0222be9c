// Random convolutions, and what they give: loops over indices that share nothing with the kernels.
#pragma once

#include "host_memory.h"

namespace sparseconv::host {

struct Convolution {
  Geometry g;
  int64_t batch, length;
  Element element;
  std::vector<int32_t> pointers, taps;  // CSR: row o * channels_per_group + c owns taps
  bool bias, relu;
  int64_t epilogue_channels;  // of the 1x1 convolution that follows; 0: none

  int64_t out_length() const { return g.output_length(length); }
  int64_t nnz() const { return static_cast<int64_t>(taps.size()); }
  bool is_valid() const {
    const int64_t most = std::max(g.left, g.right);
    return out_length() > 0 && length + g.left + g.right >= g.reach() &&
           (g.mode != PaddingMode::reflect || most < length) &&
           (g.mode != PaddingMode::circular || most <= length);
  }
};

enum Pattern : int64_t {
  kRandom,
  kEmptyRow,
  kOneTap,
  kOneDenseRow,
  kPrefix,
  kLastTap,
  kNone,
  kFull
};

inline void draw_pattern(Random& random, Convolution& c) {
  const int64_t kernels = c.g.out_channels * c.g.channels_per_group;
  const int64_t kind = random.pick({kRandom, kRandom, kRandom, kEmptyRow, kOneTap, kOneDenseRow,
                                    kPrefix, kLastTap, kNone, kFull});
  const int64_t one_in = random.pick({2, 3, 7, 20}), chosen = random(0, kernels - 1);
  const int64_t chosen_tap = random(0, c.g.kernel_size - 1);
  c.pointers.push_back(0);
  for (int64_t kernel = 0; kernel < kernels; ++kernel) {
    const int64_t row = kernel / c.g.channels_per_group;
    const int64_t prefix = c.g.kernel_size * (row * 3 / c.g.out_channels + 1) / 3;
    for (int64_t tap = 0; tap < c.g.kernel_size; ++tap) {
      const bool drawn = random.once_in(one_in);
      const bool active = kind == kFull || (kind == kRandom && drawn) ||
                          (kind == kEmptyRow && drawn && row > 0) ||
                          (kind == kOneTap && kernel == chosen && tap == chosen_tap) ||
                          (kind == kOneDenseRow && kernel == chosen) ||
                          (kind == kPrefix && tap < prefix && drawn) ||
                          (kind == kLastTap && tap == c.g.kernel_size - 1);
      if (active) {
        c.taps.push_back(static_cast<int32_t>(tap));
      }
    }
    c.pointers.push_back(static_cast<int32_t>(c.taps.size()));
  }
}

inline Convolution draw_convolution(Random& random) {
  Convolution c;
  do {
    const int64_t groups = random.pick({1, 1, 1, 2, 3}),
                  kernel_size = random.pick({1, 2, 3, 4, 5, 7, 9, 13, 39});
    const int64_t most_padding = random.once_in(8) ? 3 * kernel_size : kernel_size;
    c.g = {groups * random(1, random.once_in(6) ? 40 : 6),
           random(1, random.once_in(6) ? 24 : 4),
           kernel_size,
           random.pick({1, 1, 1, 2, 3, 5}),
           random.once_in(3) ? 0 : random(0, most_padding),
           random.once_in(3) ? 0 : random(0, most_padding),
           random.pick({1, 1, 1, 2, 3, 31}),
           groups,
           static_cast<PaddingMode>(random(0, 3))};
    c.batch = random.pick({1, 1, 2, 3, 5, 8, 15, 16, 17, 33});
    c.length = random(1, random.once_in(5) ? 200 : 70);
    c.element = static_cast<Element>(random(0, 3));
    c.bias = random.once_in(2);
    c.relu = random.once_in(3);
    // Only where nothing has to be widened or rounded.
    c.epilogue_channels =
        c.element == accumulator(c.element) && random.once_in(3) ? random(1, 20) : 0;
  } while (!c.is_valid());
  draw_pattern(random, c);
  return c;
}

// The sample that a position outside the series is a copy of; -1 for a zero.
inline int64_t sample(int64_t position, int64_t length, PaddingMode mode) {
  if (position >= 0 && position < length) {
    return position;
  }
  switch (mode) {
    case PaddingMode::replicate:
      return std::clamp<int64_t>(position, 0, length - 1);
    case PaddingMode::reflect:
      return position < 0 ? -position : 2 * (length - 1) - position;
    case PaddingMode::circular:
      return (position + length) % length;
    default:
      return -1;
  }
}

// visit(n, o, channel, e, i, l): weight e takes input sample l of `channel` to output i of o.
template <typename Visit>
void every_product(const Convolution& c, Visit visit) {
  const int64_t rows_of_group = c.g.out_channels / c.g.groups;
  for (int64_t kernel = 0; kernel < c.g.out_channels * c.g.channels_per_group; ++kernel) {
    const int64_t o = kernel / c.g.channels_per_group;
    const int64_t channel =
        o / rows_of_group * c.g.channels_per_group + kernel % c.g.channels_per_group;
    for (int64_t e = c.pointers[kernel]; e < c.pointers[kernel + 1]; ++e) {
      for (int64_t i = 0; i < c.out_length(); ++i) {
        const int64_t position = i * c.g.stride + c.taps[e] * c.g.dilation - c.g.left;
        const int64_t l = sample(position, c.length, c.g.mode);
        for (int64_t n = 0; l >= 0 && n < c.batch; ++n) {
          visit(n, o, channel, e, i, l);
        }
      }
    }
  }
}

}  // namespace sparseconv::host
