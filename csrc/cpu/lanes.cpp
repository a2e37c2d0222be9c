#include "lanes.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include <algorithm>
#include <cstring>

#include "../checks.h"
#include "fused.h"
#include "kernel_order.h"
#include "launch.h"

namespace sparseconv {

namespace {

// By which threads share: a vector of BatchNorm and ReLU counts as this many multiply-adds of a
// convolution (4 ns at N = 5, L = 150, from L2).
constexpr int64_t kVectorCost = 32;
constexpr int64_t kConvertCost = 16;  // and a row that is converted

int64_t columns_of(const Tensor& lanes) {
  return lanes.size(1) * lanes.size(2) * lanes.size(3);
}

// The columns of the matrix side by side: weights that the tile reads together. Undefined tensors
// are not added.
Tensor multiply(const Tensor& x,
                const Tensor& weight,
                int64_t rows,
                const Tensor& bias = {},
                const Tensor& added = {}) {
  Tensor output = at::empty({rows, x.size(1), x.size(2), x.size(3)}, x.options());
  Pointwise p{};
  p.bias = bias.defined() ? bias.const_data_ptr() : nullptr;
  p.added = added.defined() ? added.const_data_ptr() : nullptr;
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

// From channel `first` on.
const void* part_of(const Tensor& x, int64_t first, int64_t channel = 1) {
  return x.defined() ? static_cast<const char*>(x.const_data_ptr()) +
                           first * channel * static_cast<int64_t>(x.element_size())
                     : nullptr;
}
void* part_of_output(const Tensor& x, int64_t first, int64_t channel = 1) {
  return const_cast<void*>(part_of(x, first, channel));
}

constexpr int64_t kPoolCost = 32;  // of a vector, in multiply-adds of a convolution

class Lanes final : public KernelOrder {
 public:
  explicit Lanes(const LaneOrder& order) : order_(order) {}

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
               bool relu) const override {
    return best_fprop(input, values, bias, plan.in_lanes(), relu, &order_);
  }
  Tensor dgrad(const Tensor& grad, const Tensor& values, const ConvPlan& plan) const override {
    // With more output channels, as in gated convolutions, a segment for each tap packs too much.
    const bool tiles = takes_lanes(order_, plan.dgrad().phases[0].layout);
    return best_dgrad(grad, values, tiles ? plan : plan.in_lanes(), order_.length, {}, &order_);
  }
  Tensor wgrad(const Tensor& grad, const Tensor& input, const ConvPlan& plan) const override {
    return best_wgrad(grad, input, plan.in_lanes(), &order_);
  }

  Tensor pointwise_fprop(const Tensor& input,
                         const Tensor& weight,
                         const Tensor& bias,
                         const Tensor& added) const override {
    const bool wide = weight.scalar_type() == at::kDouble;
    Tensor output = multiply(input, wide ? transposed<double>(weight) : transposed<float>(weight),
                             weight.size(0), bias, added);
    clear_idle(output);
    return output;
  }
  Tensor pointwise_dgrad(const Tensor& grad, const Tensor& weight) const override {
    Tensor output = multiply(grad, weight.contiguous(), weight.size(1));
    clear_idle(output);
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

  std::vector<int64_t> sizes(int64_t channels) const override {
    return {channels, order_.groups, order_.rows, order_.lanes};
  }
  Tensor readable(const Tensor& lanes) const override { return lanes; }

  NormOutput norm(const std::vector<Tensor>& parts,
                  int64_t channels,
                  const Norm& norm,
                  const Tensor& added,
                  bool relu) const override {
    Tensor output = new_lanes(channels, order_, parts[0].options());
    Tensor mean = at::empty({channels}, output.options());
    Tensor invstd = at::empty({channels}, output.options());
    for (const Tensor& x : {norm.running_mean, norm.running_var}) {
      if (x.defined() && norm.training) {
        x.mutable_data_ptr();  // becomes the tensor's own, if it is a lazy copy
      }
    }
    int64_t first = 0;
    for (const Tensor& part : parts) {
      BatchNormRelu p{};
      p.order = order_;
      p.in = part.const_data_ptr();
      p.added = part_of(added, first, order_.channel());
      p.out = part_of_output(output, first, order_.channel());
      p.weight = part_of(norm.weight, first);
      p.bias = part_of(norm.bias, first);
      p.mean = part_of_output(mean, first);
      p.invstd = part_of_output(invstd, first);
      p.running_mean = part_of_output(norm.running_mean, first);
      p.running_var = part_of_output(norm.running_var, first);
      p.momentum = norm.momentum;
      p.eps = norm.eps;
      p.channels = part.size(0);
      p.training = norm.training;
      p.relu = relu;
      run_kernel(p, &KernelTable::batch_norm_relu, element_of(part),
                 part.numel() / order_.lanes * kVectorCost);
      first += p.channels;
    }
    return {output, mean, invstd};
  }

  NormGradients norm_gradient(const Tensor& grad,
                              const std::vector<Tensor>& parts,
                              int64_t,
                              const Norm& norm,
                              const Tensor& output,
                              bool relu,
                              const Tensor& mean,
                              const Tensor& invstd,
                              bool in_place) const override {
    const NormGradients found = {
        in_place ? grad : at::empty_like(grad), output.defined() ? at::empty_like(grad) : Tensor(),
        at::empty({grad.size(0)}, grad.options()), at::empty({grad.size(0)}, grad.options())};
    int64_t first = 0;
    for (const Tensor& part : parts) {
      BatchNormReluGradient p{};
      p.order = order_;
      p.grad = part_of(grad, first, order_.channel());
      p.in = part.const_data_ptr();
      p.output = part_of(output, first, order_.channel());
      p.grad_in = part_of_output(found.input, first, order_.channel());
      p.grad_added = part_of_output(found.added, first, order_.channel());
      p.weight = part_of(norm.weight, first);
      p.bias = part_of(norm.bias, first);
      p.mean = part_of(mean, first);
      p.invstd = part_of(invstd, first);
      p.grad_weight = part_of_output(found.weight, first);
      p.grad_bias = part_of_output(found.bias, first);
      p.channels = part.size(0);
      p.training = norm.training;
      p.relu = relu;
      run_kernel(p, &KernelTable::batch_norm_relu_gradient, element_of(part),
                 part.numel() / order_.lanes * kVectorCost);
      first += p.channels;
    }
    return found;
  }

  Tensor max_pool(const Tensor& input,
                  const Tensor& grad,
                  int64_t size,
                  int64_t stride) const override {
    MaxPool p{};
    p.order = order_;
    p.pooled = lane_order(order_.batch, pooled_length(order_.length, size, stride), order_.lanes);
    Tensor out = new_lanes(input.size(0), grad.defined() ? p.order : p.pooled, input.options());
    p.in = input.const_data_ptr();
    p.grad = grad.defined() ? grad.const_data_ptr() : nullptr;
    p.out = out.data_ptr();
    p.channels = input.size(0);
    p.size = size;
    p.stride = stride;
    run_kernel(p, &KernelTable::max_pool, element_of(input),
               input.numel() / order_.lanes * kPoolCost);
    return out;
  }

  Tensor mean(const Tensor& input, int64_t) const override {
    const Tensor units = input.sum({2}).flatten(1);
    const Tensor pieces =
        units.narrow(1, 0, order_.batch * order_.pieces).unflatten(1, {order_.batch, -1});
    return pieces.sum({2}).t().div(static_cast<double>(order_.length)).contiguous();
  }

 private:
  // Idle positions hold zeros, not a bias, nor what weights that are not finite have made of zeros.
  void clear_idle(Tensor& lanes) const {
    const int64_t used = order_.batch * order_.pieces, last = used % order_.lanes;
    if (last > 0) {
      lanes.select(1, order_.groups - 1).narrow(2, last, order_.lanes - last).zero_();
    }
    const auto size = static_cast<int64_t>(lanes.element_size());
    char* data = static_cast<char*>(lanes.mutable_data_ptr());
    for (int64_t c = 0; order_.idle > 0 && c < lanes.size(0); ++c) {
      for (int64_t unit = 0; unit < used; unit += order_.pieces) {  // the first pieces
        const int64_t group = c * order_.groups + unit / order_.lanes;
        char* first = data + (group * order_.rows * order_.lanes + unit % order_.lanes) * size;
        for (int64_t row = 0; row < order_.idle; ++row) {
          std::memset(first + row * order_.lanes * size, 0, size);
        }
      }
    }
  }

  const LaneOrder order_;
};

}  // namespace

Tensor new_lanes(int64_t channels, const LaneOrder& order, const at::TensorOptions& options) {
  return at::empty({channels, order.groups, order.rows, order.lanes}, options);
}

std::unique_ptr<KernelOrder> lanes_for(const LaneOrder& order) {
  return std::make_unique<Lanes>(order);
}

}  // namespace sparseconv
