#include "lanes.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/ones.h>

#include <algorithm>
#include <limits>

#include "../checks.h"
#include "chain_order.h"
#include "fused.h"
#include "launch.h"

namespace sparseconv {

namespace {

// By which threads share: a vector of BatchNorm and ReLU counts as this many multiply-adds of a
// convolution (4 ns at N = 5, L = 150, from L2).
constexpr int64_t kVectorCost = 32;
constexpr int64_t kConvertCost = 16;  // and a row that is converted

const void* data_or_null(const Tensor& x) {
  return x.defined() ? x.const_data_ptr() : nullptr;
}

int64_t columns_of(const Tensor& lanes) {
  return lanes.size(1) * lanes.size(2) * lanes.size(3);
}

// The columns of the matrix side by side: weights that the tile reads together.
Tensor multiply(const Tensor& x, const Tensor& weight, int64_t rows) {
  Tensor output = at::empty({rows, x.size(1), x.size(2), x.size(3)}, x.options());
  Pointwise p{};
  p.in = x.const_data_ptr();
  p.weight = weight.const_data_ptr();
  p.out = output.data_ptr();
  p.columns = columns_of(x);
  p.depth = x.size(0);
  p.rows = rows;
  run_kernel(p, &KernelTable::pointwise, element_of(x), p.columns / x.size(3) * p.depth * p.rows);
  return output;
}

template <typename T>
Tensor transposed(const Tensor& weight) {
  const int64_t rows = weight.size(0), depth = weight.size(1);
  Tensor result = at::empty({depth, rows}, weight.options());
  const T* from = weight.const_data_ptr<T>();
  T* to = result.data_ptr<T>();
  const int64_t row = weight.stride(0), column = weight.stride(1);  // calls: not in the loop
  for (int64_t k = 0; k < depth; ++k) {
    for (int64_t r = 0; r < rows; ++r) {
      to[k * rows + r] = from[r * row + k * column];
    }
  }
  return result;
}

class Lanes final : public ChainOrder {
 public:
  explicit Lanes(const Tensor& signal)
      : order_(lane_order(signal.size(0), signal.size(2), lanes_of(signal))) {}

  Tensor enter(const Tensor& signal) const override {
    Tensor lanes = new_lanes(signal.size(1), order_, signal.options());
    const Conversion p = {order_, view(signal), lanes.data_ptr(), signal.size(1)};
    run_kernel(p, &KernelTable::to_lanes, element_of(signal),
               p.channels * order_.groups * order_.rows * kConvertCost);
    return lanes;
  }

  Tensor leave(const Tensor& lanes, int64_t) const override {
    Tensor signal = at::empty({order_.batch, lanes.size(0), order_.length}, lanes.options());
    const Conversion p = {order_, view(signal), lanes.data_ptr(), lanes.size(0)};
    run_kernel(p, &KernelTable::from_lanes, element_of(signal),
               p.channels * order_.groups * order_.rows * kConvertCost);
    return signal;
  }

  Tensor fprop(const Tensor& input,
               const Tensor& values,
               const std::optional<Tensor>& bias,
               const ConvPlan& plan,
               bool relu,
               Tensor*) const override {
    return run_fprop(input, values, bias, plan.geometry, plan.fprop(), relu, &order_);
  }
  Tensor dgrad(const Tensor& grad, const Tensor& values, const ConvPlan& plan) const override {
    return run_dgrad(grad, values, plan.geometry, plan.dgrad(), order_.length, {}, &order_);
  }
  Tensor wgrad(const Tensor& grad, const Tensor& input, const ConvPlan& plan) const override {
    return run_wgrad(grad, input, plan.geometry, plan.wgrad(), &order_);
  }

  Tensor pointwise_fprop(const Tensor& input,
                         const Tensor& weight,
                         const std::optional<Tensor>& bias) const override {
    const bool wide = weight.scalar_type() == at::kDouble;
    Tensor output = multiply(input, wide ? transposed<double>(weight) : transposed<float>(weight),
                             weight.size(0));
    if (bias) {
      output.addcmul_(samples(input.options()), bias->view({-1, 1, 1, 1}));
    }
    keep_idle_zero(output, weight, bias);
    return output;
  }
  Tensor pointwise_dgrad(const Tensor& grad, const Tensor& weight) const override {
    Tensor output = multiply(grad, weight.contiguous(), weight.size(1));
    keep_idle_zero(output, weight, std::nullopt);
    return output;
  }
  Tensor pointwise_wgrad(const Tensor& grad, const Tensor& input, const Tensor&) const override {
    Tensor result = at::empty({grad.size(0), input.size(0), 1}, input.options());
    PointwiseGradient p{};
    p.grad = grad.const_data_ptr();
    p.in = input.const_data_ptr();
    p.out = result.data_ptr();
    p.columns = columns_of(input);
    p.depth = input.size(0);
    p.rows = grad.size(0);
    run_kernel(p, &KernelTable::pointwise_gradient, element_of(input),
               p.columns / input.size(3) * p.depth * p.rows);
    return result;
  }

  // In an order that does not depend on threads as torch's own sum does.
  Tensor sum_of_channels(const Tensor& x, int64_t) const override {
    Tensor ones = at::empty({1, x.size(1), x.size(2), x.size(3)}, x.options());
    if (ones.scalar_type() == at::kDouble) {
      std::fill_n(ones.data_ptr<double>(), ones.numel(), 1.0);
    } else {
      std::fill_n(ones.data_ptr<float>(), ones.numel(), 1.0f);
    }
    return pointwise_wgrad(x, ones, {}).flatten();
  }

  NormOutput norm_relu(const Tensor& input,
                       int64_t channels,
                       const Norm& norm,
                       const Tensor&,
                       bool in_place) const override {
    Tensor output = in_place ? input : at::empty_like(input);
    Tensor mean = at::empty({channels}, input.options());
    Tensor invstd = at::empty({channels}, input.options());
    BatchNormRelu p{};
    p.order = order_;
    p.in = input.const_data_ptr();
    p.out = output.data_ptr();
    p.weight = data_or_null(norm.weight);
    p.bias = data_or_null(norm.bias);
    p.mean = mean.data_ptr();
    p.invstd = invstd.data_ptr();
    // Those that are updated become the tensor's own, if it is a lazy copy.
    const auto statistic = [&](const Tensor& x) {
      return x.defined() && norm.training ? x.mutable_data_ptr()
                                          : const_cast<void*>(data_or_null(x));
    };
    p.running_mean = statistic(norm.running_mean);
    p.running_var = statistic(norm.running_var);
    p.momentum = norm.momentum;
    p.eps = norm.eps;
    p.channels = channels;
    p.training = norm.training;
    run_kernel(p, &KernelTable::batch_norm_relu, element_of(input),
               input.numel() / order_.lanes * kVectorCost);
    return {output, mean, invstd};
  }

  NormGradient norm_relu_gradient(const Tensor& grad,
                                  const Tensor& input,
                                  int64_t channels,
                                  const Norm& norm,
                                  const Tensor& mean,
                                  const Tensor& invstd) const override {
    Tensor grad_weight = at::empty({channels}, input.options());
    Tensor grad_bias = at::empty({channels}, input.options());
    BatchNormReluGradient p{};
    p.order = order_;
    p.grad = grad.data_ptr();
    p.in = input.const_data_ptr();
    p.weight = data_or_null(norm.weight);
    p.bias = data_or_null(norm.bias);
    p.mean = mean.const_data_ptr();
    p.invstd = invstd.const_data_ptr();
    p.grad_weight = grad_weight.data_ptr();
    p.grad_bias = grad_bias.data_ptr();
    p.channels = channels;
    run_kernel(p, &KernelTable::batch_norm_relu_gradient, element_of(input),
               input.numel() / order_.lanes * kVectorCost);
    return {grad_weight, grad_bias};
  }

 private:
  // 1 where a sample is, 0 where the order is idle: (1, groups, rows, lanes).
  Tensor samples(const at::TensorOptions& options) const {
    return enter(at::ones({order_.batch, 1, order_.length}, options));
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

}  // namespace

Tensor new_lanes(int64_t channels, const LaneOrder& order, const at::TensorOptions& options) {
  return at::empty({channels, order.groups, order.rows, order.lanes}, options);
}

bool is_finite(const Tensor& x) {
  // The largest magnitude by its bits, in which infinities and NaN come after all numbers.
  const auto largest = [n = x.numel()](const auto* bits, auto magnitude) {
    auto most = *bits & 0;
    for (int64_t i = 0; i < n; ++i) {
      most = std::max(most, bits[i] & magnitude);
    }
    return most;
  };
  if (x.numel() == 0) {
    return true;
  }
  const Tensor own = x.contiguous();
  return x.scalar_type() == at::kDouble
             ? largest(static_cast<const int64_t*>(own.const_data_ptr()),
                       std::numeric_limits<int64_t>::max()) < int64_t{0x7FF} << 52
             : largest(static_cast<const int32_t*>(own.const_data_ptr()),
                       std::numeric_limits<int32_t>::max()) < int32_t{0xFF} << 23;
}

std::unique_ptr<ChainOrder> lanes_for(const Tensor& signal) {
  return std::make_unique<Lanes>(signal);
}

}  // namespace sparseconv
