#include "chain_order.h"

#include <ATen/ops/ones.h>

#include "../checks.h"
#include "launch.h"
#include "rows.h"

namespace sparseconv {

namespace {

class Lanes final : public ChainOrder {
 public:
  explicit Lanes(const Tensor& signal)
      : order_(lane_order(signal.size(0), signal.size(2), lanes_of(signal))) {}

  Tensor enter(const Tensor& signal) const override { return to_lanes(signal, order_); }
  Tensor leave(const Tensor& own, int64_t) const override { return from_lanes(own, order_); }
  Tensor fprop(const Tensor& input,
               const Tensor& values,
               const std::optional<Tensor>& bias,
               const ConvPlan& plan,
               bool relu,
               Tensor*) const override {
    return run_fprop(input, values, bias, plan.geometry, plan.fprop(), relu, &order_);
  }
  Tensor dgrad(const Tensor& grad, const Tensor& values, const ConvPlan& plan) const override {
    return run_dgrad(grad, values, plan.geometry, plan.dgrad(), order_.length, &order_);
  }
  Tensor wgrad(const Tensor& grad, const Tensor& input, const ConvPlan& plan) const override {
    return run_wgrad(grad, input, plan.geometry, plan.wgrad(), &order_);
  }
  Tensor pointwise_fprop(const Tensor& input,
                         const Tensor& weight,
                         const std::optional<Tensor>& bias) const override {
    Tensor output = sparseconv::pointwise_fprop(input, weight);
    if (bias) {
      output.addcmul_(samples(input.options()), bias->view({-1, 1, 1, 1}));
    }
    keep_idle_zero(output, weight, bias);
    return output;
  }
  Tensor pointwise_dgrad(const Tensor& grad, const Tensor& weight) const override {
    Tensor output = sparseconv::pointwise_dgrad(grad, weight);
    keep_idle_zero(output, weight, std::nullopt);
    return output;
  }
  Tensor pointwise_wgrad(const Tensor& grad, const Tensor& input, const Tensor&) const override {
    return sparseconv::pointwise_wgrad(grad, input);
  }
  Tensor sum_of_channels(const Tensor& grad, int64_t) const override {
    return sparseconv::sum_of_channels(grad);
  }
  std::tuple<Tensor, Tensor, Tensor> norm_relu(const Tensor& input,
                                               int64_t,
                                               const Norm& norm,
                                               const Tensor&,
                                               bool in_place) const override {
    return sparseconv::norm_relu(input, order_, norm, in_place);
  }
  std::tuple<Tensor, Tensor> norm_relu_gradient(const Tensor& grad,
                                                const Tensor& input,
                                                int64_t,
                                                const Norm& norm,
                                                const Tensor& mean,
                                                const Tensor& invstd) const override {
    return sparseconv::norm_relu_gradient(grad, input, order_, norm, mean, invstd);
  }

 private:
  // 1 where a sample is, 0 where the order is idle: (1, groups, rows, lanes).
  Tensor samples(const at::TensorOptions& options) const {
    return to_lanes(at::ones({order_.batch, 1, order_.length}, options), order_);
  }
  // Idle positions hold zeros, of which weights that are not finite have made NaN.
  void keep_idle_zero(Tensor& lanes,
                      const Tensor& weight,
                      const std::optional<Tensor>& bias) const {
    if (!is_finite(weight) || (bias && !is_finite(*bias))) {
      lanes.masked_fill_(samples(lanes.options()).eq(0), 0);
    }
  }

  const LaneOrder order_;
};

// A 1x1 convolution is one of blocks that are all active.
class RowsOfTiles final : public ChainOrder {
 public:
  RowsOfTiles(const Tensor& signal, int64_t margin)
      : order_{signal.size(0), signal.size(2), std::max<int64_t>(margin, kTileRowCount)} {}

  Tensor enter(const Tensor& signal) const override { return to_rows(signal, order_); }
  Tensor leave(const Tensor& own, int64_t channels) const override {
    return from_rows(own, channels, order_);
  }
  Tensor fprop(const Tensor& input,
               const Tensor& values,
               const std::optional<Tensor>& bias,
               const ConvPlan& plan,
               bool relu,
               Tensor* statistics) const override {
    return row_fprop(input, values, bias, plan, relu, order_, statistics);
  }
  Tensor dgrad(const Tensor& grad, const Tensor& values, const ConvPlan& plan) const override {
    return row_dgrad(grad, values, plan, order_);
  }
  Tensor wgrad(const Tensor& grad, const Tensor& input, const ConvPlan& plan) const override {
    return row_wgrad(grad, input, plan, order_);
  }
  Tensor pointwise_fprop(const Tensor& input,
                         const Tensor& weight,
                         const std::optional<Tensor>& bias) const override {
    return fprop(input, weight.flatten(), bias, plan_of_weight(weight), false, nullptr);
  }
  Tensor pointwise_dgrad(const Tensor& grad, const Tensor& weight) const override {
    return dgrad(grad, weight.flatten(), plan_of_weight(weight));
  }
  Tensor pointwise_wgrad(const Tensor& grad,
                         const Tensor& input,
                         const Tensor& weight) const override {
    return wgrad(grad, input, plan_of_weight(weight)).view(weight.sizes());
  }
  Tensor sum_of_channels(const Tensor& grad, int64_t channels) const override {
    return row_sum_of_channels(grad, channels, order_);
  }
  std::tuple<Tensor, Tensor, Tensor> norm_relu(const Tensor& input,
                                               int64_t channels,
                                               const Norm& norm,
                                               const Tensor& statistics,
                                               bool) const override {
    return row_norm_relu(input, channels, order_, norm, statistics);
  }
  std::tuple<Tensor, Tensor> norm_relu_gradient(const Tensor& grad,
                                                const Tensor& input,
                                                int64_t channels,
                                                const Norm& norm,
                                                const Tensor& mean,
                                                const Tensor& invstd) const override {
    return row_norm_relu_gradient(grad, input, channels, order_, norm, mean, invstd);
  }

 private:
  static const ConvPlan& plan_of_weight(const Tensor& weight) {
    return pointwise_plan(weight.size(0), weight.size(1));
  }

  const RowOrder order_;
};

}  // namespace

std::unique_ptr<ChainOrder> lanes_for(const Tensor& signal) {
  return std::make_unique<Lanes>(signal);
}

std::unique_ptr<ChainOrder> rows_for(const Tensor& signal, int64_t margin) {
  return std::make_unique<RowsOfTiles>(signal, margin);
}

}  // namespace sparseconv
