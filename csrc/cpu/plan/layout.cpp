#include "layout.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <limits>
#include <numeric>

namespace sparseconv {

namespace {

// What the packed inputs of the channels that share the scratch may take. No result depends on it.
// With 48 KB of L1, 32, 36 and 40 KB come within 2 % of each other at DSN's layer, and 24 KB is 5 %
// slower. With 32 KB of L1, 36 KB takes 1 % less time than 24 KB (median of 16 shapes), and for
// 2000 outputs of 250 channels and 32 taps 19 % less.
constexpr int64_t kInputBytes = 36 * 1024;
// A block of channels has at least this many taps, or loading and storing its sums takes longest:
// with it, 1x1 kernels take 22 to 44 % less time, and those of three taps 2 to 31 %.
constexpr int64_t kLeastTaps = 64;

// By how many samples the rows of a tile are apart: if by the dilation, taps are neighbouring rows,
// as at dilation 1. A row, of inputs and of outputs, then consists of 16 / dilation runs of samples
// or more, and takes about 8 / dilation times as long to pack. wgrad, for which tensors in lanes
// have to leave their order, needs to save twice that.
int64_t apart_of(const Geometry& g, int64_t tile_rows, bool apart) {
  const int64_t d = g.dilation, span = g.kernel_size - 1, cost = tile_rows == kWgradRows ? 16 : 8;
  const bool pays = d * (2 * tile_rows + d * span) > cost * (2 * tile_rows + span);
  return apart && g.stride == 1 && span > 0 && pays ? d : 1;
}

// Rows for taps at the given input positions, when neighbouring rows are `step` inputs apart.
// Taps whose rows would overlap share a segment, so a dense kernel packs each input once, and a
// widely dilated one packs no sample that no tap reads.
Layout make_layout(const std::vector<int64_t>& positions,
                   int64_t stride,
                   int64_t apart,
                   int64_t tile_rows) {
  const int64_t step = stride * apart;
  Layout layout;
  layout.step = step;
  layout.apart = apart;
  layout.tile_rows = tile_rows;
  layout.tap_rows.resize(positions.size());
  auto residue = [&](size_t i) { return ((positions[i] % step) + step) % step; };
  auto quotient = [&](size_t i) { return (positions[i] - residue(i)) / step; };
  std::vector<size_t> order(positions.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    return residue(a) != residue(b) ? residue(a) < residue(b) : quotient(a) < quotient(b);
  });
  int64_t rows = 0;
  for (size_t i = 0; i < order.size(); ++i) {
    const size_t tap = order[i];
    const bool joins = i > 0 && residue(order[i - 1]) == residue(tap) &&
                       quotient(tap) - quotient(order[i - 1]) <= tile_rows;
    if (!joins) {
      layout.segments.push_back({positions[tap], rows, 0});
      rows += tile_rows;
    } else {
      Segment& segment = layout.segments.back();
      const int64_t span = (positions[tap] - segment.position) / step;
      rows += span - segment.span;
      segment.span = span;
    }
    const Segment& segment = layout.segments.back();
    layout.tap_rows[tap] = static_cast<int32_t>(segment.row + segment.span);
  }
  TORCH_CHECK_VALUE(
      rows <= std::numeric_limits<int32_t>::max(),
      "expected a kernel that spans at most 2**31 - 1 rows of scratch memory, but got ", rows);
  layout.channel_rows = rows;
  const auto taps = std::max<int64_t>(static_cast<int64_t>(positions.size()), 1);
  layout.block_channels = std::max(
      {int64_t{1}, kLeastTaps / taps, kInputBytes / (std::max<int64_t>(rows, 1) * kRowBytes)});
  return layout;
}

// Where neighbouring samples go if a strided kernel reads all of them: packing them in their order,
// not residue by residue, makes fprop 1.3 to 2.1 times as fast (stride 2 to 8, AVX-512).
void read_in_order(Layout& layout) {
  const auto& segments = layout.segments;
  for (size_t i = 0; i < segments.size(); ++i) {  // one of each residue, in this order
    if (segments[i].position % layout.step != static_cast<int64_t>(i)) {
      return;
    }
  }
  if (layout.step == 1 || static_cast<int64_t>(segments.size()) != layout.step) {
    return;
  }
  constexpr int64_t kBlock = 16;  // that a transpose reads at least
  const auto unused = static_cast<int32_t>(layout.channel_rows++);
  int64_t samples = 0;
  for (const Segment& segment : segments) {
    const int64_t rows = layout.tile_rows + segment.span;
    samples = std::max(samples, segment.position + (rows - 1) * layout.step + 1);
    layout.sample_rows.resize(std::max<int64_t>(layout.sample_rows.size(), samples + kBlock),
                              unused);
    for (int64_t row = 0; row < rows; ++row) {
      layout.sample_rows[segment.position + row * layout.step] =
          static_cast<int32_t>(segment.row + row);
    }
  }
  layout.window = samples - layout.tile_rows * layout.step;
}

Layout forward_layout(const Geometry& g, int64_t tile_rows, bool apart) {
  std::vector<int64_t> positions(g.kernel_size);
  for (int64_t tap = 0; tap < g.kernel_size; ++tap) {
    positions[tap] = tap * g.dilation;
  }
  Layout layout = make_layout(positions, g.stride, apart_of(g, tile_rows, apart), tile_rows);
  read_in_order(layout);
  return layout;
}

}  // namespace

Layout fprop_layout(const Geometry& g, bool apart) {
  return forward_layout(g, kTileRows, apart);
}

Layout wgrad_layout(const Geometry& g, bool apart) {
  return forward_layout(g, kWgradRows, apart);
}

Layout dgrad_layout(const Geometry& g, int64_t first, int64_t past, bool apart) {
  std::vector<int64_t> taps, positions;
  for (int64_t tap = 0; tap < g.kernel_size; ++tap) {
    const int64_t phase = tap * g.dilation % g.stride;
    if (first <= phase && phase < past) {
      taps.push_back(tap);
      positions.push_back(-(tap * g.dilation / g.stride));
    }
  }
  Layout layout = make_layout(positions, 1, apart_of(g, kTileRows, apart), kTileRows);
  std::vector<int32_t> tap_rows(g.kernel_size, -1);
  for (size_t i = 0; i < taps.size(); ++i) {
    tap_rows[taps[i]] = layout.tap_rows[i];
  }
  layout.tap_rows = std::move(tap_rows);
  return layout;
}

int64_t wgrad_splits(int64_t chunks) {
  constexpr int64_t kSplitsMax = 8, kChunksPerSplit = 4;
  return std::clamp<int64_t>(chunks / kChunksPerSplit, 1, kSplitsMax);
}

}  // namespace sparseconv
