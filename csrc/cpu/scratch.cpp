#include "scratch.h"

#include <algorithm>

namespace sparseconv {

namespace {

int64_t stage_rows(const TileShape& tile, int64_t piece) {
  int64_t span = 0;
  for (int64_t i = 0; i < tile.n_segments; ++i) {
    span = std::max(span, tile.segments[i].span);
  }
  return stage_stride(piece + span);
}

int64_t block_rows(const TileShape& tile, const Entries& entries) {
  return tile.channel_rows * std::min(tile.block_channels, entries.channels_per_group);
}

}  // namespace

CorrelateScratch plan_scratch(const Correlation& p) {
  CorrelateScratch plan;
  plan.row_block = std::max<int64_t>(1, kAccBytes / (p.piece * kRowBytes));
  plan.row_block = std::min(plan.row_block, p.entries.n_rows / p.entries.groups);
  plan.input_rows = block_rows(p.tile, p.entries);
  // With one channel block no sum waits for the next, and one slot serves every row. Rows that
  // wait for the pointwise epilogue are an odd number of cache lines apart: a panel of them spreads
  // over all of L1.
  plan.acc_stride = p.epilogue_weight != nullptr ? p.piece | 1
                    : p.entries.n_blocks == 1    ? 0
                                                 : p.piece;
  const int64_t waiting = p.epilogue_weight != nullptr ? p.entries.n_rows : plan.row_block;
  plan.acc_rows = std::max(p.piece, waiting * plan.acc_stride);
  plan.epilogue_rows = p.epilogue_weight != nullptr ? p.epilogue_channels * p.piece : 0;
  plan.stage_rows = stage_rows(p.tile, p.piece);
  return plan;
}

WgradScratch plan_scratch(const WeightGradient& p) {
  WgradScratch plan;
  plan.grad_channel_rows = std::max<int64_t>(p.piece, 16);
  plan.row_block = std::max<int64_t>(1, kAccBytes / (plan.grad_channel_rows * kRowBytes));
  plan.row_block = std::min(plan.row_block, p.entries.n_rows / p.entries.groups);
  plan.input_rows = block_rows(p.tile, p.entries);
  plan.grad_rows = plan.row_block * plan.grad_channel_rows;
  plan.stage_rows = stage_rows(p.tile, p.piece);
  return plan;
}

int64_t scratch_bytes(const Correlation& p) {
  const CorrelateScratch plan = plan_scratch(p);
  return (plan.input_rows + plan.acc_rows + plan.epilogue_rows + plan.stage_rows) * kRowBytes;
}

int64_t scratch_bytes(const WeightGradient& p) {
  const WgradScratch plan = plan_scratch(p);
  return (plan.input_rows + plan.grad_rows + kWgradBatch + plan.stage_rows) * kRowBytes;
}

int64_t scratch_bytes(const Pointwise& p) {
  return (p.depth + p.rows) * 2 * kRowBytes;
}

int64_t scratch_bytes(const PointwiseGradient& p) {
  return kPointDepth * (ceil_div(p.rows, 8) * kRowBytes + 2 * kRowBytes + kRowBytes);
}

int64_t scratch_bytes(const BatchNormRelu& p) {
  return channel_block(p.batch, p.length, 1) * channel_samples(p.batch, p.length) * 8;
}

int64_t scratch_bytes(const BatchNormReluGradient& p) {
  return 2 * channel_block(p.batch, p.length, 2) * channel_samples(p.batch, p.length) * 8;
}

int64_t scratch_bytes(const Pool& p) {
  return (p.length + p.bins) * kRowBytes;
}

}  // namespace sparseconv
