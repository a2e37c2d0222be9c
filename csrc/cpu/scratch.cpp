#include "scratch.h"

#include <algorithm>

namespace sparseconv {

namespace {

int64_t stage_rows(const TileShape& tile, int64_t rows) {
  int64_t span = 0;
  for (int64_t i = 0; i < tile.n_segments; ++i) {
    span = std::max(span, tile.segments[i].span);
  }
  return stage_stride(tile.sample_rows != nullptr ? rows * tile.step + tile.window : rows + span);
}

int64_t block_rows(const TileShape& tile, int64_t channels_per_group) {
  return tile.channel_rows * std::min(tile.block_channels, channels_per_group);
}

// Rows of a group's longest tile, all tiles being near-equal.
int64_t longest_tile(int64_t rows, int64_t most) {
  return ceil_div(rows, ceil_div(rows, most));
}

}  // namespace

CorrelateScratch plan_scratch(const Correlation& p) {
  CorrelateScratch plan;
  const int64_t rows =
      longest_tile(ceil_div(p.rows(), p.row_step()), kTileRows / p.order.wide) * p.order.wide;
  const int64_t group_rows = p.entries.n_rows / p.entries.groups;
  // The phases of a channel stay together.
  const int64_t fitting = kAccBytes / (rows * kRowBytes) / p.phases * p.phases;
  plan.row_block = p.in_place() ? group_rows : std::min(group_rows, fitting);
  plan.stored = ceil_div(kStored, p.phases) * p.phases;
  plan.input_rows = block_rows(p.tile, p.entries.channels_per_group) * p.order.wide;
  plan.edge_rows = p.edge ? plan.input_rows : 0;
  plan.acc_stride = rows;
  plan.acc_rows =
      p.in_place() ? 0 : (p.entries.n_blocks == 1 ? plan.stored : plan.row_block) * rows;
  plan.stage_rows =
      p.in_lanes ? 0 : std::max(stage_rows(p.tile, rows), stage_stride(rows * p.phases));
  return plan;
}

WgradScratch plan_scratch(const WeightGradient& p) {
  WgradScratch plan;
  const int64_t wide = p.order.wide, rows = longest_tile(p.order.rows, kWgradRows / wide);
  // Of a transpose a block at least.
  plan.grad_channel_rows = p.order.apart > 1 ? rows : std::max<int64_t>(rows, 16);
  plan.row_block = p.n_rows / p.groups;
  if (!p.in_lanes) {
    plan.row_block =
        std::min(plan.row_block, kAccBytes / (plan.grad_channel_rows * wide * kRowBytes));
  }
  plan.input_rows = block_rows(p.tile, p.channels_per_group) * wide;
  plan.grad_rows = p.in_lanes ? 0 : plan.row_block * plan.grad_channel_rows * wide;
  plan.stage_rows = p.in_lanes ? 0 : stage_rows(p.tile, rows);
  return plan;
}

int64_t Correlation::scratch_bytes() const {
  const CorrelateScratch plan = plan_scratch(*this);
  return (plan.input_rows + plan.edge_rows + plan.acc_rows + plan.stage_rows) * kRowBytes;
}

int64_t WeightGradient::scratch_bytes() const {
  const WgradScratch plan = plan_scratch(*this);
  return (plan.input_rows + plan.grad_rows + plan.stage_rows) * kRowBytes;
}

int64_t Conversion::scratch_bytes() const {
  return (16 + stage_stride(order.rows)) * kRowBytes;
}

}  // namespace sparseconv
