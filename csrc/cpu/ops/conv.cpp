// The ops: from their arguments to a plan, checks and a computation.

#include <ATen/Context.h>
#include <ATen/ops/ones.h>
#include <torch/library.h>

#include "../../checks.h"
#include "../conv.h"
#include "../launch.h"
#include "../plan/plan_cache.h"

namespace sparseconv {

void check_fprop(const ConvPlan& plan,
                 const Tensor& input,
                 const Tensor& values,
                 const std::optional<Tensor>& bias) {
  const Geometry& g = plan.geometry;
  element_of(input);
  check_signal(input, "input", g.in_channels());
  check_lengths(g, input.size(2));
  check_vector(values, "values", input, plan.nnz);
  if (bias.has_value()) {
    check_vector(*bias, "bias", input, g.out_channels);
  }
}

void check_gradient_of(const ConvPlan& plan, const Tensor& grad, const Tensor& input) {
  const Geometry& g = plan.geometry;
  element_of(input);
  check_signal(input, "input", g.in_channels());
  check_signal(grad, "grad_output", g.out_channels);
  check_same_type(input, grad, "grad_output");
  check_lengths(g, input.size(2));
  check_gradient(grad, g, input.size(0), input.size(2));
}

Tensor bias_grad(const Tensor& grad) {
  element_of(grad);
  check_signal(grad, "grad_output");
  const ConvPlan& plan = pointwise_plan(grad.size(1), 1);
  const Tensor ones = at::ones({1}, grad.options()).expand({grad.size(0), 1, grad.size(2)});
  return best_wgrad(grad, ones, plan);
}

namespace {

// Whether torch lets its own CPU convolutions round float32 to bfloat16.
bool may_round() {
  const at::Context& context = at::globalContext();
  return context.userEnabledMkldnn() &&
         context.float32Precision(at::Float32Backend::MKLDNN, at::Float32Op::CONV) ==
             at::Float32Precision::BF16;
}

}  // namespace

bool by_blocks(const Tensor& signal, const ConvPlan& plan) {
  const Geometry& g = plan.geometry;
  const at::ScalarType type = signal.scalar_type();
  return checked_kernels().blocks != nullptr &&
         std::min(g.out_channels / g.groups, g.channels_per_group) >= kBlockSize &&
         (type == at::kBFloat16 || (type == at::kFloat && may_round())) && plan.blocks() != nullptr;
}

namespace {

Tensor fprop(const Tensor& input,
             const Tensor& values,
             const std::optional<Tensor>& bias,
             const Tensor& crow,
             const Tensor& col,
             at::IntArrayRef geometry,
             bool relu) {
  const ConvPlanPtr plan = plan_of(crow, col, geometry);
  check_fprop(*plan, input, values, bias);
  return best_fprop(input, values, bias, *plan, relu);
}

Tensor dgrad(const Tensor& grad,
             const Tensor& values,
             const Tensor& crow,
             const Tensor& col,
             at::IntArrayRef geometry,
             int64_t input_length,
             const std::optional<Tensor>& bias) {
  const ConvPlanPtr plan = plan_of(crow, col, geometry);
  const Geometry& g = plan->geometry;
  element_of(grad);
  check_signal(grad, "grad_output", g.out_channels);
  check_lengths(g, input_length);
  check_gradient(grad, g, grad.size(0), input_length);
  check_vector(values, "values", grad, plan->nnz);
  if (bias.has_value()) {
    check_vector(*bias, "bias", grad, g.in_channels());
    TORCH_CHECK_VALUE(g.mode == PaddingMode::zeros, "a bias requires padding_mode 0 (zeros)");
  }
  return best_dgrad(grad, values, *plan, input_length, bias);
}

Tensor wgrad(const Tensor& grad,
             const Tensor& input,
             const Tensor& crow,
             const Tensor& col,
             at::IntArrayRef geometry) {
  const ConvPlanPtr plan = plan_of(crow, col, geometry);
  check_gradient_of(*plan, grad, input);
  return best_wgrad(grad, input, *plan);
}

}  // namespace

TORCH_LIBRARY_IMPL(sparseconv, CPU, m) {
  m.impl("fprop", fprop);
  m.impl("dgrad", dgrad);
  m.impl("wgrad", wgrad);
  m.impl("bias_grad", bias_grad);
}

}  // namespace sparseconv
