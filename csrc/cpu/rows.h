// Tensors in rows, bfloat16: (panels of 32 channels, series, rows, 32), a row for each position,
// with idle rows before and after each series in which a convolution finds its padding. They hold
// any numbers; zeros in new tensors. See Rows in blocks.h.
#pragma once

#include "kernel_order.h"

namespace sparseconv {

constexpr int64_t kPanelChannels = 2 * kBlockSize;
constexpr int64_t kRowGrain = 16 * 1024;  // rows worth a thread

inline int64_t panels_of(int64_t channels) {
  return ceil_div(channels, kPanelChannels);
}

// Convolutions are those that keep the length (see fits_lanes), of plans for which fits_rows is
// true (others are computed outside); a dense 1x1 convolution is one of blocks that are all active.
// The idle rows of what is convolved are written. Gradients of weights are float32.
struct RowOrder final : KernelOrder {
  // margin: idle rows before and after each series, at least.
  RowOrder(int64_t batch, int64_t length, int64_t margin)
      : batch(batch), length(length), margin(margin > kTileRowCount ? margin : kTileRowCount) {}

  Tensor enter(const Tensor& signal) const override;
  Tensor leave(const Tensor& rows, int64_t channels) const override;
  Tensor fprop(const Tensor& input, const Convolution& c) const override;
  Tensor dgrad(const Tensor& grad, const Convolution& c) const override;
  Tensor wgrad(const Tensor& grad, const Tensor& input, const Convolution& c) const override;
  Tensor sum_of_channels(const Tensor& rows, int64_t channels) const override;

  std::vector<int64_t> sizes(int64_t channels) const override {
    return {panels_of(channels), batch, length + 2 * margin, kPanelChannels};
  }
  Tensor readable(const Tensor& rows) const override;
  // All parts but the last one fill their panels. Vectors are of any float type.
  std::tuple<Tensor, Tensor, Tensor> norm(const Norm& norm) const override;
  NormGradients norm_gradient(const Norm& norm, bool in_place) const override;
  Tensor max_pool(const Tensor& input,
                  const Tensor& grad,
                  int64_t size,
                  int64_t stride) const override;
  Tensor mean(const Tensor& input, int64_t channels) const override;

  Rows of(const Tensor& rows) const;
  Tensor empty(int64_t channels) const;

  const int64_t batch, length, margin;
};

// Whether rows take the convolution: its pattern has blocks, or its input one channel, whose taps
// are then the channels of a 1x1 convolution.
bool fits_rows(const ConvPlan& plan);

}  // namespace sparseconv
