// The three computations of a sparse convolution, given plans: of signals (N, C, L) with any
// strides, and of tensors in lanes (lane_order.h).
#pragma once

#include <optional>

#include "../checks.h"
#include "plan/conv_plan.h"

namespace sparseconv {

// Whether the kernels can take and give tensors in lanes: outputs as long as inputs, which are
// padded with zeros or replicated ends.
bool fits_lanes(const Geometry& g);

// Checks of what a computation takes. They throw ValueError or TypeError.
void check_fprop(const ConvPlan& plan,
                 const Tensor& input,
                 const Tensor& values,
                 const std::optional<Tensor>& bias);
void check_gradient_of(const ConvPlan& plan, const Tensor& grad, const Tensor& input);

// The gradient of a bias, summed in an order that does not depend on threads.
Tensor bias_grad(const Tensor& grad);

// The computations, without taps that meet only padding, by the kernels that are fastest for plan
// and dtype. They check nothing. A bias of dgrad makes it a transposed convolution; the padding is
// zeros then. `lanes` is the order of input and output, null for (N, C, L).
Tensor best_fprop(const Tensor& input,
                  const Tensor& values,
                  const std::optional<Tensor>& bias,
                  const ConvPlan& plan,
                  bool relu,
                  const LaneOrder* lanes = nullptr);
Tensor best_dgrad(const Tensor& grad,
                  const Tensor& values,
                  const ConvPlan& plan,
                  int64_t input_length,
                  const std::optional<Tensor>& bias = {},
                  const LaneOrder* lanes = nullptr);
Tensor best_wgrad(const Tensor& grad,
                  const Tensor& input,
                  const ConvPlan& plan,
                  const LaneOrder* lanes = nullptr);

// The gradient of an input, contiguous and of this type, given that of the padded input,
// (N, C, left + L + right), float32 or float64: adds what reached the padding to the samples that
// it was copied from, in ascending order.
Tensor folded(const Tensor& padded, const Geometry& g, at::ScalarType type);

// Whether these kernels are products of blocks of channels, in bfloat16 with float sums: if the
// plan has blocks, and the signal is bfloat16, or float32 that torch may round.
bool by_blocks(const Tensor& signal, const ConvPlan& plan);
Tensor block_fprop(const Tensor& input,
                   const Tensor& values,
                   const std::optional<Tensor>& bias,
                   const ConvPlan& plan,
                   bool relu);
Tensor block_dgrad(const Tensor& grad,
                   const Tensor& values,
                   const ConvPlan& plan,
                   int64_t input_length,
                   const std::optional<Tensor>& bias);
// None where an infinity may have met a zero that fills a tile.
std::optional<Tensor> block_wgrad(const Tensor& grad, const Tensor& input, const ConvPlan& plan);

// The same of signals in views or rows, which `p` names; the rest of it is filled in.
void run_block_fprop(BlockCorrelation& p,
                     const Tensor& values,
                     const std::optional<Tensor>& bias,
                     const ConvPlan& plan,
                     bool relu);
Tensor packed_for_dgrad(const Tensor& values, const ConvPlan& plan, int64_t phase);
void run_block_dgrad(BlockCorrelation& p,
                     const Tensor& weights,  // packed
                     const ConvPlan& plan,
                     int64_t phase);
// In float32.
std::optional<Tensor> run_block_wgrad(BlockWeightGradient& p, const ConvPlan& plan);

}  // namespace sparseconv
