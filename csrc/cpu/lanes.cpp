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

  Tensor fprop(const Tensor& input, const Convolution& c) const override {
    if (c.plan != nullptr) {
      return best_fprop(input, c.weights, c.bias, c.plan->in_lanes(), c.relu, &order_);
    }
    const bool wide = c.weights.scalar_type() == at::kDouble;
    const Tensor weight = wide ? transposed<double>(c.weights) : transposed<float>(c.weights);
    return multiply(input, weight, c.bias.value_or(Tensor()), c.added);
  }
  Tensor dgrad(const Tensor& grad, const Convolution& c) const override {
    if (c.plan == nullptr) {
      return multiply(grad, c.weights.squeeze(2).contiguous());
    }
    // With more output channels, as in gated convolutions, a segment for each tap packs too much.
    const ConvPlan& plan =
        takes_lanes(order_, c.plan->dgrad().phases[0].layout) ? *c.plan : c.plan->in_lanes();
    return best_dgrad(grad, c.weights, plan, order_.length, {}, &order_);
  }
  Tensor wgrad(const Tensor& grad, const Tensor& input, const Convolution& c) const override {
    return c.plan != nullptr ? best_wgrad(grad, input, c.plan->in_lanes(), &order_)
                             : products(grad, input);
  }

  // In an order that does not depend on threads as torch's own sum does.
  Tensor sum_of_channels(const Tensor& x, int64_t) const override {
    Tensor ones = at::empty({1, x.size(1), x.size(2), x.size(3)}, x.options());
    if (ones.scalar_type() == at::kDouble) {
      std::fill_n(ones.data_ptr<double>(), ones.numel(), 1.0);
    } else {
      std::fill_n(ones.data_ptr<float>(), ones.numel(), 1.0f);
    }
    return products(x, ones).flatten();
  }

  std::vector<int64_t> sizes(int64_t channels) const override {
    return {channels, order_.groups, order_.rows, order_.lanes};
  }
  Tensor readable(const Tensor& lanes) const override { return lanes; }

  std::tuple<Tensor, Tensor, Tensor> norm(const Norm& norm) const override {
    Tensor output = new_lanes(norm.channels, order_, norm.parts[0].options());
    Tensor mean = at::empty({norm.channels}, output.options()), invstd = at::empty_like(mean);
    for (const Tensor& x : {norm.running_mean, norm.running_var}) {
      if (x.defined() && norm.training) {
        x.mutable_data_ptr();  // becomes the tensor's own, if it is a lazy copy
      }
    }
    run_norm<BatchNormRelu>(norm, &KernelTable::batch_norm_relu,
                            [&](BatchNormRelu& p, int64_t first) {
                              p.added = part_of(norm.added, first, order_.channel());
                              p.out = part_of_output(output, first, order_.channel());
                              p.mean = part_of_output(mean, first);
                              p.invstd = part_of_output(invstd, first);
                              p.running_mean = part_of_output(norm.running_mean, first);
                              p.running_var = part_of_output(norm.running_var, first);
                              p.momentum = norm.momentum;
                              p.eps = norm.eps;
                            });
    return {output, mean, invstd};
  }

  NormGradients norm_gradient(const Norm& norm, bool in_place) const override {
    const Tensor& grad = norm.grad;
    const NormGradients found = {in_place ? grad : at::empty_like(grad),
                                 norm.added.defined() ? at::empty_like(grad) : Tensor(),
                                 at::empty({norm.channels}, grad.options()),
                                 at::empty({norm.channels}, grad.options())};
    const auto fill = [&](BatchNormReluGradient& p, int64_t first) {
      p.grad = part_of(grad, first, order_.channel());
      p.output = part_of(norm.added, first, order_.channel());
      p.grad_in = part_of_output(found.input, first, order_.channel());
      p.grad_added = part_of_output(found.added, first, order_.channel());
      p.mean = part_of(norm.mean, first);
      p.invstd = part_of(norm.invstd, first);
      p.grad_weight = part_of_output(found.weight, first);
      p.grad_bias = part_of_output(found.bias, first);
    };
    run_norm<BatchNormReluGradient>(norm, &KernelTable::batch_norm_relu_gradient, fill);
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
  // weight: (inputs, outputs), so that the tile reads neighbours together. Undefined tensors are
  // not added.
  Tensor multiply(const Tensor& x,
                  const Tensor& weight,
                  const Tensor& bias = {},
                  const Tensor& added = {}) const {
    Pointwise p{};
    p.depth = weight.size(0);
    p.rows = weight.size(1);
    Tensor output = new_lanes(p.rows, order_, x.options());
    p.bias = part_of(bias, 0);
    p.added = part_of(added, 0);
    p.in = x.const_data_ptr();
    p.weight = weight.const_data_ptr();
    p.out = output.data_ptr();
    p.columns = order_.channel();
    run_kernel(p, &KernelTable::pointwise, element_of(x),
               p.columns / order_.lanes * p.depth * p.rows);
    clear_idle(output);
    return output;
  }

  // Of each pair of channels, summed over the columns.
  Tensor products(const Tensor& grad, const Tensor& input) const {
    Tensor result = at::empty({grad.size(0), input.size(0)}, input.options());
    PointwiseGradient p{};
    p.grad = grad.const_data_ptr();
    p.in = input.const_data_ptr();
    p.out = result.data_ptr();
    p.columns = order_.channel();
    p.depth = input.size(0);
    p.rows = grad.size(0);
    run_kernel(p, &KernelTable::pointwise_gradient, element_of(input),
               p.columns / order_.lanes * p.depth * p.rows);
    return result;
  }

  // Runs a kernel on each part, of whose problem `fill` knows the rest, from its first channel on.
  template <typename Problem, typename Kernels, typename Fill>
  void run_norm(const Norm& norm, Kernels kernels, Fill fill) const {
    int64_t first = 0;
    for (const Tensor& part : norm.parts) {
      Problem p{};
      p.order = order_;
      p.in = part.const_data_ptr();
      p.weight = part_of(norm.weight, first);
      p.bias = part_of(norm.bias, first);
      p.channels = part.size(0);
      p.training = norm.training;
      p.relu = norm.relu;
      fill(p, first);
      run_kernel(p, kernels, element_of(part), part.numel() / order_.lanes * kVectorCost);
      first += p.channels;
    }
  }

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
