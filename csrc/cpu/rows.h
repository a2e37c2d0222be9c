// Tensors in rows, bfloat16: panels of 32 channels, a row for each position, with idle rows before
// and after each series in which a convolution finds its padding. See Rows in blocks.h.
#pragma once

#include <ATen/core/Tensor.h>

#include <tuple>

#include "conv.h"
#include "lanes.h"

namespace sparseconv {

constexpr int64_t kPanelChannels = 2 * kBlockSize;
constexpr int64_t kRowGrain = 16 * 1024;  // rows worth a thread

inline int64_t panels_of(int64_t channels) {
  return ceil_div(channels, kPanelChannels);
}

struct RowOrder {
  int64_t batch, length, margin;  // idle rows before and after each series, at least 16

  Rows of(const at::Tensor& rows, int64_t channels) const;
  at::Tensor empty(int64_t channels) const;
  at::Tensor statistics(int64_t channels) const;  // not filled
};

// From and to (N, C, L), the former with any strides.
at::Tensor to_rows(const at::Tensor& signal, const RowOrder& order);
at::Tensor from_rows(const at::Tensor& rows, int64_t channels, const RowOrder& order);

// Sparse convolutions that keep the length (see fits_lanes), of plans that have blocks. The idle
// rows of what is convolved are written. Gradients of weights are float32; `statistics` becomes
// what row_norm_relu needs of the output.
at::Tensor row_fprop(const at::Tensor& input,
                     const at::Tensor& values,
                     const std::optional<at::Tensor>& bias,
                     const ConvPlan& plan,
                     bool relu,
                     const RowOrder& order,
                     at::Tensor* statistics);
at::Tensor row_dgrad(const at::Tensor& grad,
                     const at::Tensor& values,
                     const ConvPlan& plan,
                     const RowOrder& order);
at::Tensor row_wgrad(const at::Tensor& grad,
                     const at::Tensor& input,
                     const ConvPlan& plan,
                     const RowOrder& order);

// Whether those take the convolution: its pattern has blocks, or its input one channel, whose taps
// are then the channels of a 1x1 convolution.
bool fits_rows(const ConvPlan& plan);

// The plan of a dense 1x1 convolution; without blocks if it has too many channels.
const ConvPlan& pointwise_plan(int64_t out_channels, int64_t in_channels);

at::Tensor row_sum_of_channels(const at::Tensor& rows, int64_t channels, const RowOrder& order);

// As norm_relu and norm_relu_gradient (lanes.h); vectors of any float type. Statistics of the input
// are undefined where row_fprop has not made them.
std::tuple<at::Tensor, at::Tensor, at::Tensor> row_norm_relu(const at::Tensor& input,
                                                             int64_t channels,
                                                             const RowOrder& order,
                                                             const Norm& norm,
                                                             at::Tensor statistics);
std::tuple<at::Tensor, at::Tensor> row_norm_relu_gradient(const at::Tensor& grad,
                                                          const at::Tensor& input,
                                                          int64_t channels,
                                                          const RowOrder& order,
                                                          const Norm& norm,
                                                          const at::Tensor& mean,
                                                          const at::Tensor& invstd);

}  // namespace sparseconv
