#include "conv.h"

#include <ATen/record_function.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/library.h>

#include <cstdlib>
#include <string_view>

#include "../cpu/isa/dispatch.h"
#include "../cpu/plan/plan_cache.h"
#include "lanes.h"

namespace sparseconv {

namespace {

// Kept until the process ends: backward passes may run while Python shuts down.
pybind11::object& python_gradients() {
  static auto& function = *new pybind11::object;
  return function;
}

// Gradients that have gradients themselves, and which torch's compilers and transforms can trace.
variable_list gradients_by_python(const Tensor& grad,
                                  const variable_list& saved,
                                  const std::vector<int64_t>& geometry,
                                  const std::array<bool, 3>& needed,
                                  bool triton,
                                  bool transposed) {
  const pybind11::gil_scoped_acquire gil;
  variable_list gradients;
  for (const pybind11::handle found :
       python_gradients()(grad, saved[0], saved[1], saved[3], saved[4], geometry, needed,
                          triton ? "triton" : "cpp", transposed)) {
    gradients.push_back(found.is_none() ? Tensor() : found.cast<Tensor>());
  }
  return gradients;
}

// What the forward pass takes besides the tensors that have gradients.
struct Call {
  const Tensor &crow, &col;
  at::IntArrayRef geometry;
  bool relu, triton, transposed;  // then `input` is the gradient of the convolution's output
  c10::function_ref<Tensor()> compute;
};

struct SparseConv : torch::autograd::Function<SparseConv> {
  static Tensor forward(AutogradContext* ctx,
                        const Tensor& input,
                        const Tensor& values,
                        const std::optional<Tensor>& bias,
                        const Call& call) {
    const at::AutoDispatchBelowADInplaceOrView below;
    const Tensor output = call.compute();
    ctx->save_for_backward({input, values, call.relu ? output : Tensor(), call.crow, call.col});
    std::vector<int64_t> numbers = call.geometry.vec();
    numbers.resize(kGeometryNumbers);  // fewer, as a wrong call may have, are refused by the op
    numbers.push_back(bias.has_value());
    numbers.push_back(call.triton);
    numbers.push_back(call.transposed);
    ctx->saved_data["numbers"] = std::move(numbers);
    return output;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const ForkGuard fork_guard;
    const variable_list saved = ctx->get_saved_variables();
    const Tensor &input = saved[0], &output = saved[2];
    std::vector<int64_t> geometry = ctx->saved_data["numbers"].toIntVector();
    const bool has_bias = geometry.at(kGeometryNumbers) != 0;
    const bool triton = geometry.at(kGeometryNumbers + 1) != 0;
    const bool transposed = geometry.at(kGeometryNumbers + 2) != 0;
    geometry.resize(kGeometryNumbers);
    // What is not asked for, as in autograd.grad(y, x), is not computed.
    const std::array<bool, 3> needed = {ctx->needs_input_grad(0), ctx->needs_input_grad(1),
                                        has_bias && ctx->needs_input_grad(2)};
    Tensor grad = grads[0];
    if (output.defined()) {
      grad = at::threshold_backward(grad, output, 0);  // where y > 0, as F.relu's
    }
    variable_list found(3);
    if (at::GradMode::is_enabled() || triton || !computes_plainly(grad)) {
      found = gradients_by_python(grad, saved, geometry, needed, triton, transposed);
    } else {
      const at::AutoDispatchBelowADInplaceOrView below;
      const ConvPlanPtr plan = plan_of(saved[3], saved[4], geometry);
      const Tensor values = [&] {
        const pybind11::gil_scoped_acquire gil;
        return detached_snapshot(saved[1]);
      }();
      // Checked again: hooks of saved tensors and other threads may have changed what was saved.
      grad = grad.resolve_neg();
      const Tensor given = input.resolve_neg();
      const Tensor &y = transposed ? given : grad, &x = transposed ? grad : given;
      check_gradient_of(*plan, y, x);
      check_vector(values, "values", input, plan->nnz);
      if (needed[0] && transposed) {
        RECORD_FUNCTION("sparseconv::fprop", c10::ArrayRef<const c10::IValue>{});
        found[0] = best_fprop(grad, values.resolve_neg(), std::nullopt, *plan, false);
      } else if (needed[0]) {
        RECORD_FUNCTION("sparseconv::dgrad", c10::ArrayRef<const c10::IValue>{});
        found[0] = best_dgrad(grad, values.resolve_neg(), *plan, input.size(2));
      }
      if (needed[1]) {
        RECORD_FUNCTION("sparseconv::wgrad", c10::ArrayRef<const c10::IValue>{});
        found[1] = best_wgrad(y, x, *plan);
      }
      if (needed[2]) {
        found[2] = bias_grad(grad);
      }
    }
    found.resize(4);  // one for each argument of `forward`
    return found;
  }
};

// Computes, and records the gradients if any are wanted.
Tensor recorded(const Tensor& input,
                const Tensor& values,
                const std::optional<Tensor>& bias,
                const Call& call) {
  if (at::GradMode::is_enabled() && (input.requires_grad() || values.requires_grad() ||
                                     (bias.has_value() && bias->requires_grad()))) {
    return SparseConv::apply(input, values, bias, call);
  }
  const at::AutoDispatchBelowADInplaceOrView below;
  return call.compute();
}

// What the ops fprop and triton_fprop do where autograd meets them.
template <bool triton>
Tensor differentiable_fprop(const Tensor& input,
                            const Tensor& values,
                            const std::optional<Tensor>& bias,
                            const Tensor& crow,
                            const Tensor& col,
                            at::IntArrayRef geometry,
                            bool relu) {
  static const auto op = find_op<decltype(differentiable_fprop<triton>)>(
      triton ? "sparseconv::triton_fprop" : "sparseconv::fprop");
  const auto compute = [&] { return op.call(input, values, bias, crow, col, geometry, relu); };
  return recorded(input, values, bias, {crow, col, geometry, relu, triton, false, compute});
}

// What the ops dgrad and triton_dgrad do there: a transposed convolution may train.
template <bool triton>
Tensor differentiable_dgrad(const Tensor& grad,
                            const Tensor& values,
                            const Tensor& crow,
                            const Tensor& col,
                            at::IntArrayRef geometry,
                            c10::SymInt length,
                            const std::optional<Tensor>& bias) {
  static const auto op = find_op<decltype(differentiable_dgrad<triton>)>(
      triton ? "sparseconv::triton_dgrad" : "sparseconv::dgrad");
  const auto compute = [&] { return op.call(grad, values, crow, col, geometry, length, bias); };
  return recorded(grad, values, bias, {crow, col, geometry, false, triton, true, compute});
}

// Whether `backend` is "cpp", or "auto" for tensors on a CPU: see ops/backends.py.
bool chooses_these(pybind11::handle backend) {
  const auto is = [&](const char* name) {
    return PyUnicode_Check(backend.ptr()) &&
           PyUnicode_CompareWithASCIIString(backend.ptr(), name) == 0;
  };
  if (!is("auto")) {
    return is("cpp");
  }
  const char* variable = std::getenv("SPARSECONV_BACKEND");
  const std::string_view preferred = variable == nullptr ? "" : variable;
  return preferred.empty() || preferred == "auto" || preferred == "cpp";
}

}  // namespace

void set_gradients(const pybind11::function& gradients) {
  python_gradients() = gradients;
}

std::optional<Tensor> plain_conv(pybind11::handle input,
                                 pybind11::handle values,
                                 pybind11::handle bias,
                                 const Tensor& crow,
                                 const Tensor& col,
                                 pybind11::handle geometry,
                                 pybind11::handle backend,
                                 bool relu) {
  if (!chooses_these(backend)) {
    return {};
  }
  choose_kernels();
  const std::optional<Tensor> x = plain_tensor(input), parameter = plain_tensor(values);
  const std::optional<Tensor> b = bias.is_none() ? std::nullopt : plain_tensor(bias);
  if (!x || !parameter || (!b && !bias.is_none()) || !runs_plainly() ||
      (x->dim() != 2 && x->dim() != 3)) {
    return {};
  }
  const GeometryNumbers numbers = geometry_numbers(geometry);
  ConvPlanPtr plan = known_plan(crow, col, numbers);
  const bool batched = x->dim() == 3;
  const Tensor signal = batched ? *x : x->unsqueeze(0);
  const Tensor x_now = detached_snapshot(signal), values_now = detached_snapshot(*parameter);
  const auto bias_now = b ? std::optional(detached_snapshot(*b)) : std::nullopt;
  const pybind11::gil_scoped_release release;
  try {
    plan = plan ? plan : plan_of(crow, col, numbers);
    check_fprop(*plan, x_now, values_now, bias_now);
  } catch (const c10::Error&) {  // Python raises it
    return {};
  }
  RECORD_FUNCTION("sparseconv::fprop", c10::ArrayRef<const c10::IValue>{});
  const auto compute = [&] { return best_fprop(x_now, values_now, bias_now, *plan, relu); };
  const Tensor y =
      recorded(signal, *parameter, b, {crow, col, numbers, relu, false, false, compute});
  return batched ? y : y.squeeze(0);
}

}  // namespace sparseconv

TORCH_LIBRARY_IMPL(sparseconv, Autograd, m) {
  m.impl("fprop", sparseconv::differentiable_fprop<false>);
  m.impl("triton_fprop", sparseconv::differentiable_fprop<true>);
  m.impl("dgrad", sparseconv::differentiable_dgrad<false>);
  m.impl("triton_dgrad", sparseconv::differentiable_dgrad<true>);
  // Their gradients are made by sparseconv/functional/gradients.py: alone they have none, and
  // backward and forward mode raise instead of being wrong.
  for (const char* name : {"wgrad", "bias_grad", "triton_wgrad"}) {
    m.impl(name, torch::autograd::autogradNotImplementedFallback());
  }
}
