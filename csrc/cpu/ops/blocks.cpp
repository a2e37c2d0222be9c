// The three computations by blocks, in bfloat16.

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <atomic>

#include "../../checks.h"
#include "../conv.h"
#include "../launch.h"

namespace sparseconv {
namespace {

constexpr int64_t kTileGrain = 256;  // products of tiles (16 rows each) worth a thread

BlockPacking packing_of(const std::vector<BlockWeights>& tiles, const ConvPlan& plan) {
  BlockPacking p{};
  p.tiles = tiles.data();
  p.n = static_cast<int64_t>(tiles.size());
  p.pointers = plan.pointers();
  p.channels_per_group = plan.geometry.channels_per_group;
  return p;
}

// A tile for each entry.
Tensor packed(const Tensor& values,
              const std::vector<BlockWeights>& tiles,
              const ConvPlan& plan,
              bool transposed) {
  const Tensor source = values.to(at::kFloat).contiguous();
  BlockPacking p = packing_of(tiles, plan);
  Tensor weights = at::empty({p.n, kBlockSize / 2, kBlockSize, 2}, at::kBFloat16);
  p.values = const_cast<float*>(source.const_data_ptr<float>());
  p.transposed = transposed;
  p.packed = weights.mutable_data_ptr();
  const auto pack = checked_kernels().blocks->pack;
  at::parallel_for(0, p.n, kTileGrain, [&](int64_t begin, int64_t end) { pack(p, begin, end); });
  return weights;
}

void run_blocks(BlockCorrelation p, const BlockCorrelationPlan& plan) {
  p.entries = plan.entries.data();
  p.first = plan.first.data();
  p.low = plan.low;
  p.high = plan.high;
  if (p.batch * p.rows == 0) {
    return;
  }
  const auto entries = static_cast<int64_t>(plan.entries.size());
  const int64_t strips = p.batch * ceil_div(p.rows, kStripRows);
  run_parts(p, checked_kernels().blocks->correlate,
            strips * (entries + 8 * p.out_blocks) * kTilesAtOnce / kTileGrain);
}

// Zeros for the channels that fill the last block.
Tensor filled(const Tensor& bias) {
  const int64_t blocks = ceil_div(bias.numel(), kBlockSize);
  Tensor init = at::zeros({blocks * kBlockSize}, bias.options().dtype(at::kFloat));
  init.narrow(0, 0, bias.numel()).copy_(bias);
  return init;
}

}  // namespace

void run_block_fprop(BlockCorrelation& p,
                     const Tensor& values,
                     const std::optional<Tensor>& bias,
                     const ConvPlan& plan,
                     bool relu) {
  const Geometry& g = plan.geometry;
  const BlockCorrelationPlan& blocks = plan.blocks()->fprop;
  const Tensor weights = packed(values, blocks.weights, plan, false);
  p.out_blocks = ceil_div(g.out_channels, kBlockSize);
  p.in_blocks = ceil_div(g.in_channels(), kBlockSize);
  const Tensor init = bias.has_value() ? filled(*bias) : Tensor();
  p.init = init.defined() ? init.const_data_ptr<float>() : nullptr;
  p.weights = weights.const_data_ptr();
  p.step = g.stride;
  p.in_channels = g.in_channels();
  p.out_channels = g.out_channels;
  p.mode = g.mode;
  p.origin = -g.left;
  p.rows = g.output_length(p.in_length);
  p.out_step = 1;
  p.relu = relu;
  run_blocks(p, blocks);
}

Tensor block_fprop(const Tensor& input,
                   const Tensor& values,
                   const std::optional<Tensor>& bias,
                   const ConvPlan& plan,
                   bool relu) {
  const Geometry& g = plan.geometry;
  const Tensor signal = input.to(at::kBFloat16);
  BlockCorrelation p{};
  p.batch = input.size(0);
  p.in = view(signal);
  p.in_length = input.size(2);
  Tensor output =
      at::empty({p.batch, g.out_channels, g.output_length(p.in_length)}, input.options());
  p.out = view(output);
  p.out_float = output.scalar_type() == at::kFloat;
  run_block_fprop(p, values, bias, plan, relu);
  return output;
}

Tensor packed_for_dgrad(const Tensor& values, const ConvPlan& plan, int64_t phase) {
  return packed(values, plan.blocks()->dgrad[phase].weights, plan, true);
}

void run_block_dgrad(BlockCorrelation& p,
                     const Tensor& weights,
                     const ConvPlan& plan,
                     int64_t phase) {
  const Geometry& g = plan.geometry;
  const BlockCorrelationPlan& blocks = plan.blocks()->dgrad[phase];
  p.out_blocks = ceil_div(g.in_channels(), kBlockSize);
  p.in_blocks = ceil_div(g.out_channels, kBlockSize);
  p.weights = weights.const_data_ptr();
  p.in_channels = g.out_channels;
  p.out_channels = g.in_channels();
  run_blocks(p, blocks);
}

Tensor block_dgrad(const Tensor& grad,
                   const Tensor& values,
                   const ConvPlan& plan,
                   int64_t input_length,
                   const std::optional<Tensor>& bias) {
  const Geometry& g = plan.geometry;
  // Padding other than zeros carries gradient back to the samples it was copied from.
  const bool folds = g.mode != PaddingMode::zeros && g.left + g.right > 0;
  const int64_t left = folds ? g.left : 0, right = folds ? g.right : 0;
  const Tensor signal = grad.to(at::kBFloat16);
  const Tensor init = bias.has_value() ? filled(*bias) : Tensor();
  Tensor output = at::empty({grad.size(0), g.in_channels(), left + input_length + right},
                            folds ? grad.options().dtype(at::kFloat) : grad.options());
  for (int64_t phase = 0; phase < g.stride; ++phase) {
    // Padded positions j = stride * u + phase in [low, high).
    const int64_t low = g.left - left, high = g.left + input_length + right;
    const int64_t first = low > phase ? ceil_div(low - phase, g.stride) : 0;
    const int64_t past = high > phase ? ceil_div(high - phase, g.stride) : 0;
    BlockCorrelation p{};
    p.step = 1;
    p.batch = grad.size(0);
    p.init = init.defined() ? init.const_data_ptr<float>() : nullptr;
    p.in = view(signal);
    p.in_length = grad.size(2);
    p.mode = PaddingMode::zeros;
    p.origin = first;
    p.out = view(output);
    p.out_float = output.scalar_type() == at::kFloat;
    p.rows = past - first;
    p.first_out = first * g.stride + phase - low;
    p.out_step = g.stride;
    run_block_dgrad(p, packed_for_dgrad(values, plan, phase), plan, phase);
  }
  return folds ? folded(output, g, grad.scalar_type()) : output;
}

std::optional<Tensor> run_block_wgrad(BlockWeightGradient& p, const ConvPlan& plan) {
  const Geometry& g = plan.geometry;
  const BlockWgradPlan& blocks = plan.blocks()->wgrad;
  p.taps = blocks.taps.data();
  p.n_taps = static_cast<int64_t>(blocks.taps.size());
  p.phases = blocks.phases.data();
  p.n_runs = static_cast<int64_t>(blocks.phases.size());
  p.span = blocks.span;
  p.reach = g.reach();
  p.out_blocks = ceil_div(g.out_channels, kBlockSize);
  p.in_blocks = ceil_div(g.in_channels(), kBlockSize);
  p.step = g.stride;
  p.in_channels = g.in_channels();
  p.out_channels = g.out_channels;
  p.mode = g.mode;
  p.origin = -g.left;
  p.splits = p.batch * p.rows > 0 ? wgrad_splits(p.units()) : 1;
  const Tensor sums = at::zeros({p.splits, p.n_taps, kBlockSize, kBlockSize}, at::kFloat);
  p.out = sums.mutable_data_ptr<float>();
  if (p.batch * p.rows * p.n_taps > 0) {
    run_parts(p, checked_kernels().blocks->wgrad, p.splits);
  }
  Tensor output = at::empty({plan.nnz}, at::kFloat);
  BlockPacking q = packing_of(blocks.weights, plan);
  q.values = output.mutable_data_ptr<float>();
  q.sums = p.out;
  q.splits = p.splits;
  const auto unpack = checked_kernels().blocks->unpack_sums;
  std::atomic<bool> finite = true;
  at::parallel_for(0, q.n, kTileGrain, [&](int64_t begin, int64_t end) {
    if (!unpack(q, begin, end)) {
      finite = false;
    }
  });
  if (p.rows % kPairRows != 0 && !finite) {
    return std::nullopt;
  }
  return output;
}

std::optional<Tensor> block_wgrad(const Tensor& grad, const Tensor& input, const ConvPlan& plan) {
  const Tensor grads = grad.to(at::kBFloat16), inputs = input.to(at::kBFloat16);
  BlockWeightGradient p{};
  p.batch = input.size(0);
  p.rows = grad.size(2);
  p.grad = view(grads);
  p.in = view(inputs);
  p.in_length = input.size(2);
  const std::optional<Tensor> found = run_block_wgrad(p, plan);
  return found.has_value() ? std::optional(found->to(input.scalar_type())) : std::nullopt;
}

}  // namespace sparseconv
