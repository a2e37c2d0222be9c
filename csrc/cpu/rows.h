// Tensors in rows, bfloat16: (panels of 32 channels, series, rows, 32), a row for each position,
// with idle rows before and after each series in which a convolution finds its padding. They hold
// any numbers; zeros in new tensors. See Rows in blocks.h.
#pragma once

#include <ATen/core/Tensor.h>

#include "kernel_order.h"

namespace sparseconv {

constexpr int64_t kPanelChannels = 2 * kBlockSize;
constexpr int64_t kRowGrain = 16 * 1024;  // rows worth a thread

inline int64_t panels_of(int64_t channels) {
  return ceil_div(channels, kPanelChannels);
}

// Convolutions are those that keep the length (see fits_lanes), of plans for which fits_rows is
// true (others are computed outside); a 1x1 convolution is one of blocks that are all active. The
// idle rows of what is convolved are written. Gradients of weights are float32.
struct RowOrder final : KernelOrder {
  // margin: idle rows before and after each series, at least.
  RowOrder(int64_t batch, int64_t length, int64_t margin)
      : batch(batch), length(length), margin(margin > kTileRowCount ? margin : kTileRowCount) {}

  at::Tensor enter(const at::Tensor& signal) const override;
  at::Tensor leave(const at::Tensor& rows, int64_t channels) const override;
  at::Tensor fprop(const at::Tensor& input,
                   const at::Tensor& values,
                   const std::optional<at::Tensor>& bias,
                   const ConvPlan& plan,
                   bool relu) const override;
  at::Tensor dgrad(const at::Tensor& grad,
                   const at::Tensor& values,
                   const ConvPlan& plan) const override;
  at::Tensor wgrad(const at::Tensor& grad,
                   const at::Tensor& input,
                   const ConvPlan& plan) const override;
  at::Tensor pointwise_fprop(const at::Tensor& input,
                             const at::Tensor& weight,
                             const at::Tensor& bias,
                             const at::Tensor& added) const override;
  at::Tensor pointwise_dgrad(const at::Tensor& grad, const at::Tensor& weight) const override;
  at::Tensor pointwise_wgrad(const at::Tensor& grad,
                             const at::Tensor& input,
                             const at::Tensor& weight) const override;
  at::Tensor sum_of_channels(const at::Tensor& rows, int64_t channels) const override;

  std::vector<int64_t> sizes(int64_t channels) const override {
    return {panels_of(channels), batch, length + 2 * margin, kPanelChannels};
  }
  at::Tensor readable(const at::Tensor& rows) const override;
  // All parts but the last one fill their panels. Vectors are of any float type.
  NormOutput norm(const std::vector<at::Tensor>& parts,
                  int64_t channels,
                  const Norm& norm,
                  const at::Tensor& added,
                  bool relu) const override;
  NormGradients norm_gradient(const at::Tensor& grad,
                              const std::vector<at::Tensor>& parts,
                              int64_t channels,
                              const Norm& norm,
                              const at::Tensor& output,
                              bool relu,
                              const at::Tensor& mean,
                              const at::Tensor& invstd,
                              bool in_place) const override;
  at::Tensor max_pool(const at::Tensor& input,
                      const at::Tensor& grad,
                      int64_t size,
                      int64_t stride) const override;
  at::Tensor mean(const at::Tensor& input, int64_t channels) const override;

  Rows of(const at::Tensor& rows) const;
  at::Tensor empty(int64_t channels) const;

  const int64_t batch, length, margin;
};

// Whether rows take the convolution: its pattern has blocks, or its input one channel, whose taps
// are then the channels of a 1x1 convolution.
bool fits_rows(const ConvPlan& plan);

}  // namespace sparseconv
