// BatchNorm of tensors in lanes: the ops and their gradients.

#include "lanes.h"

#include <ATen/Dispatch.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/batch_norm.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include <bit>

namespace sparseconv {

namespace {

// What both passes have in common. In rows, the number of channels is that of the vectors, of which
// at least one is there.
Norm norm_of(const Ordered& own,
             at::TensorList parts,
             const OptionalTensor& weight,
             const OptionalTensor& bias,
             const OptionalTensor& added,
             const OptionalTensor& mean,
             const OptionalTensor& var = {}) {
  Norm norm{};
  for (const Tensor& part : parts) {
    norm.parts.push_back(own.checked(part, {}, "a part"));
    norm.channels += part.size(0);
  }
  if (own.like.scalar_type() == at::kBFloat16) {
    const int64_t panels = norm.channels;
    norm.channels *= kPanelChannels;
    for (const OptionalTensor& vector : {weight, bias, mean, var}) {
      norm.channels = vector ? vector->numel() : norm.channels;
    }
    TORCH_CHECK_VALUE(panels_of(norm.channels) == panels, "expected vectors for ", panels,
                      " panels of channels, but got ", norm.channels, " numbers");
  }
  norm.weight = own.vector(weight, norm.channels, "weight");
  norm.bias = own.vector(bias, norm.channels, "bias");
  norm.added = own.checked(added, norm.channels, "added");
  return norm;
}

const Tensor& first_of(at::TensorList parts) {
  TORCH_CHECK_VALUE(!parts.empty(), "expected at least one part");
  return parts[0];
}

std::tuple<Tensor, Tensor, Tensor> lanes_norm(at::TensorList parts,
                                              const OptionalTensor& weight,
                                              const OptionalTensor& bias,
                                              const OptionalTensor& running_mean,
                                              const OptionalTensor& running_var,
                                              const OptionalTensor& added,
                                              bool training,
                                              double momentum,
                                              double eps,
                                              bool relu,
                                              int64_t batch,
                                              int64_t length) {
  const Ordered own(first_of(parts), batch, length);
  Norm norm = norm_of(own, parts, weight, bias, added, running_mean, running_var);
  TORCH_CHECK_VALUE(!training || batch * length > 1,
                    "Expected more than 1 value per channel when training, got input size [", batch,
                    ", ", norm.channels, ", ", length, "]");
  TORCH_CHECK_VALUE(!training || eps > 0, "expected eps above 0, but got ", eps);
  TORCH_CHECK_VALUE(relu || !added.has_value(), "expected relu with what is added");
  for (const OptionalTensor& x : {running_mean, running_var}) {
    TORCH_CHECK_VALUE(training || x.has_value(), "expected running statistics in eval mode");
    if (x.has_value()) {
      own.vector(x, norm.channels, "a running statistic");
      TORCH_CHECK_VALUE(x->is_contiguous() && !x->is_neg(), "expected contiguous statistics");
    }
  }
  norm.running_mean = running_mean.value_or(Tensor());
  norm.running_var = running_var.value_or(Tensor());
  norm.momentum = momentum;
  norm.eps = eps;
  norm.training = training;
  norm.relu = relu;
  return own->norm(norm);
}

template <bool kInPlace>
std::vector<Tensor> lanes_norm_backward(const Tensor& grad,
                                        at::TensorList parts,
                                        const OptionalTensor& weight,
                                        const OptionalTensor& bias,
                                        const OptionalTensor& output,
                                        const Tensor& mean,
                                        const Tensor& invstd,
                                        bool training,
                                        bool relu,
                                        int64_t batch,
                                        int64_t length) {
  const Ordered own(first_of(parts), batch, length);
  Norm norm = norm_of(own, parts, weight, bias, output, mean);
  norm.grad = own.checked(grad, norm.channels, "grad_output");
  norm.mean = own.vector(mean, norm.channels, "mean");
  norm.invstd = own.vector(invstd, norm.channels, "invstd");
  norm.training = training;
  norm.relu = relu;
  NormGradients found = own->norm_gradient(norm, kInPlace);
  std::vector<Tensor> result = {found.input, found.weight, found.bias};
  if (output.has_value()) {
    result.push_back(found.added);
  }
  return result;
}

// Weights and bias of a convolution and the BatchNorm after it, by running statistics, from a
// pattern's values, `kernels` of each channel, or a dense weight. Differentiable.
std::tuple<Tensor, Tensor> lanes_fold(const Tensor& weights,
                                      const OptionalTensor& conv_bias,
                                      const OptionalTensor& crow,
                                      int64_t kernels,
                                      const OptionalTensor& weight,
                                      const OptionalTensor& bias,
                                      const Tensor& mean,
                                      const Tensor& var,
                                      double eps) {
  if (at::GradMode::is_enabled() || !computes_plainly(weights, true)) {
    const auto exact = [](const Tensor& x) { return x.to(acc_type(x)); };
    Tensor scale = exact(var).add(eps).rsqrt();
    scale = weight ? scale * *weight : scale;
    Tensor offset = (conv_bias ? *conv_bias - exact(mean) : -exact(mean)) * scale;
    offset = bias ? offset + *bias : offset;
    if (!crow) {
      return {weights * scale.view({-1, 1, 1}), offset};
    }
    const Tensor counts = crow->slice(0, {}, {}, kernels).diff();
    return {weights * scale.repeat_interleave_symint(counts, {}, weights.sym_numel()), offset};
  }
  // The same numbers in one loop: ten operations on a few numbers took as long as a layer.
  const int64_t rows = var.numel(), size = weights.numel();
  const at::ScalarType type = at::promote_types(acc_type(weights), acc_type(var));
  const auto readable = [&](const OptionalTensor& x, int64_t numel) {
    if (!x) {
      return Tensor();
    }
    check_memory(*x, "each tensor");
    TORCH_CHECK_VALUE(x->is_cpu() && x->numel() == numel, "expected ", numel,
                      " numbers on the CPU, but got ", x->numel(), " on ", x->device());
    return x->resolve_neg().to(type).contiguous();
  };
  const Tensor from = readable(weights, size), variances = readable(var, rows),
               means = readable(mean, rows), scales = readable(weight, rows),
               biases = readable(bias, rows), offsets = readable(conv_bias, rows);
  if (crow) {
    check_indices(*crow, "crow_indices", rows * kernels + 1);
  }
  const int32_t* pointers = crow ? crow->const_data_ptr<int32_t>() : nullptr;
  const Tensor result = at::empty_like(from), offset = at::empty_like(means);
  AT_DISPATCH_FLOATING_TYPES(type, "lanes_fold", [&] {
    const auto numbers = [](const Tensor& x) {
      return x.defined() ? x.const_data_ptr<scalar_t>() : nullptr;
    };
    const auto *w = numbers(from), *variance = numbers(variances), *mean = numbers(means),
               *scale = numbers(scales), *shift = numbers(biases), *added = numbers(offsets);
    auto *to = result.data_ptr<scalar_t>(), *sums = offset.data_ptr<scalar_t>();
    int64_t end = 0;
    for (int64_t row = 0; row < rows; ++row) {
      const scalar_t root = 1 / std::sqrt(variance[row] + static_cast<scalar_t>(eps));
      const scalar_t by = scale != nullptr ? root * scale[row] : root;
      const scalar_t sum = (added != nullptr ? added[row] - mean[row] : -mean[row]) * by;
      sums[row] = shift != nullptr ? sum + shift[row] : sum;
      const int64_t first = crow ? pointers[row * kernels] : end;
      const bool follows = first == end;
      end = crow ? pointers[(row + 1) * kernels] : size / rows * (row + 1);
      TORCH_CHECK_VALUE(follows && first <= end && end <= size, "expected crow_indices of ", size,
                        " weights");
      for (int64_t i = first; i < end; ++i) {
        to[i] = w[i] * by;
      }
    }
    TORCH_CHECK_VALUE(end == size, "expected weights of ", rows, " channels, but got ", size,
                      ", of which ", end, " belong to them");
  });
  return {result, offset};
}

// The same of the parts, weight, bias and zeros that are added, by ops that have all derivatives.
// `output`, if something was added, is zero where the gradient is.
Tensor norm_by_torch(const Backward& b, const variable_list& inputs, const Tensor& output) {
  const auto [eps, training, relu, batch, length] = b.numbers<5>();
  const Tensor &weight = inputs.end()[-3], &bias = inputs.end()[-2], &added = inputs.end()[-1];
  const Tensor &mean = b.saved.end()[-2], &invstd = b.saved.back();
  const int64_t channels = mean.numel(), margin = margin_of(inputs[0], length);
  const Tensor lanes = at::cat(variable_list(inputs.begin(), inputs.end() - 3));
  Tensor x = CALL(lanes_leave)(lanes, channels, batch, length);
  if (training) {
    x = at::batch_norm(x, optional(weight), optional(bias), {}, {}, true, 0,
                       std::bit_cast<double>(eps), false);
  } else {
    const Tensor scale = weight.defined() ? invstd * weight : invstd;
    x = ((x - mean.unsqueeze(1)) * scale.unsqueeze(1)).to(lanes.scalar_type());
    x = bias.defined() ? (x + bias.unsqueeze(1)).to(lanes.scalar_type()) : x;
  }
  if (added.defined()) {
    x = x + CALL(lanes_leave)(added, channels, batch, length);
    const Tensor z = CALL(lanes_leave)(output, channels, batch, length);
    return CALL(lanes_enter)(x.masked_fill(z.le(0), 0), margin);
  }
  return CALL(lanes_enter)(relu ? x.relu() : x, margin);
}

variable_list norm_gradients(const Backward& b) {
  const size_t n = b.saved.size() - 5;
  if (b.again || !computes_plainly(b.grad, true)) {
    variable_list inputs(b.saved.begin(), b.saved.end() - 2);
    Tensor output;
    if (inputs.back().defined()) {
      output = inputs.back().detach();
      inputs.back() = at::zeros_like(output).requires_grad_();
    }
    return gradients_by_torch(b, inputs,
                              [&](const variable_list& x) { return norm_by_torch(b, x, output); });
  }
  const at::TensorList parts = at::TensorList(b.saved).slice(0, n);
  static const auto op =
      find_op<decltype(lanes_norm_backward<false>)>("sparseconv::lanes_norm_backward");
  const auto call = [&](const auto& compute) {
    return compute(b.grad, parts, optional(b.saved[n]), optional(b.saved[n + 1]),
                   optional(b.saved[n + 2]), b.saved[n + 3], b.saved[n + 4], b.kept[1] != 0,
                   b.kept[2] != 0, b.kept[3], b.kept[4]);
  };
  const std::vector<Tensor> gradients =
      b.owns_grad() ? call(lanes_norm_backward<true>)
                    : call([](const auto&... given) { return op.call(given...); });
  variable_list found;
  int64_t first = 0;
  for (const Tensor& part : parts) {
    found.push_back(n == 1 ? gradients[0] : gradients[0].narrow(0, first, part.size(0)));
    first += part.size(0);
  }
  for (size_t i = 0; i < 3; ++i) {
    found.push_back(b.saved[n + i].defined() ? gradients[1 + i] : Tensor());
  }
  return found;
}

}  // namespace

}  // namespace sparseconv

TORCH_LIBRARY_FRAGMENT(sparseconv, m) {
  using namespace sparseconv;
  implement<lanes_norm>(
      m, "lanes_norm",
      [](at::TensorList parts, const OptionalTensor& weight, const OptionalTensor& bias,
         const OptionalTensor& running_mean, const OptionalTensor& running_var,
         const OptionalTensor& added, bool training, double momentum, double eps, bool relu,
         int64_t batch, int64_t length) {
        const auto [output, mean, invstd] =
            COMPUTE(lanes_norm)(parts, weight, bias, running_mean, running_var, added, training,
                                momentum, eps, relu, batch, length);
        variable_list saved = parts.vec();
        // What is added need not be kept: the output is positive where it gets a gradient.
        saved.insert(saved.end(), {weight.value_or(Tensor()), bias.value_or(Tensor()),
                                   added ? output : Tensor(), mean, invstd});
        const Tensor y = recorded<norm_gradients>(
            output, std::move(saved), {std::bit_cast<int64_t>(eps), training, relu, batch, length},
            parts, weight, bias, added);
        return std::make_tuple(y, mean, invstd);
      });
  implement<lanes_norm_backward<false>>(m, "lanes_norm_backward");
  implement<lanes_fold, c10::DispatchKey::CompositeImplicitAutograd>(m, "lanes_fold");
}
