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
variable_list gradients_by_python(const Backward& b,
                                  const Tensor& grad,
                                  const std::vector<int64_t>& geometry,
                                  const std::array<bool, 3>& needed,
                                  bool triton,
                                  bool transposed) {
  const pybind11::gil_scoped_acquire gil;
  variable_list gradients;
  for (const pybind11::handle found :
       python_gradients()(grad, b.saved[0], b.saved[1], b.saved[3], b.saved[4], geometry, needed,
                          triton ? "triton" : "cpp", transposed)) {
    gradients.push_back(found.is_none() ? Tensor() : found.cast<Tensor>());
  }
  return gradients;
}

variable_list conv_gradients(const Backward& b) {
  const Tensor &input = b.saved[0], &output = b.saved[2];
  const std::vector<int64_t> geometry(b.kept.begin(), b.kept.begin() + kGeometryNumbers);
  const auto [has_bias, triton, transposed] = b.numbers<3>();
  // What is not asked for, as in autograd.grad(y, x), is not computed.
  const std::array<bool, 3> needed = {b.needs(0), b.needs(1), has_bias && b.needs(2)};
  Tensor grad = b.grad;
  if (output.defined()) {
    grad = at::threshold_backward(grad, output, 0);  // where y > 0, as F.relu's
  }
  if (b.again || triton || !computes_plainly(grad)) {
    return gradients_by_python(b, grad, geometry, needed, triton, transposed);
  }
  variable_list found(3);
  const at::AutoDispatchBelowADInplaceOrView below;
  const ConvPlanPtr plan = plan_of(b.saved[3], b.saved[4], geometry);
  const Tensor values = [&] {
    const pybind11::gil_scoped_acquire gil;
    return detached_snapshot(b.saved[1]);
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
  return found;
}

// What a convolution takes besides the tensors that have gradients.
struct Call {
  const Tensor &crow, &col;
  at::IntArrayRef geometry;
  bool relu, triton, transposed;  // then `input` is the gradient of the convolution's output
};

// Computes, and records the gradients if any are wanted.
template <typename Compute>
Tensor computed(const Tensor& input,
                const Tensor& values,
                const std::optional<Tensor>& bias,
                const Call& call,
                Compute compute) {
  const Tensor output = [&] {
    const BelowAutograd below;
    return compute();
  }();
  if (!at::GradMode::is_enabled() || (!input.requires_grad() && !values.requires_grad() &&
                                      !(bias.has_value() && bias->requires_grad()))) {
    return output;
  }
  std::vector<int64_t> numbers = call.geometry.vec();
  numbers.insert(numbers.end(), {bias.has_value(), call.triton, call.transposed});
  return recorded<conv_gradients>(
      output, {input, values, call.relu ? output : Tensor(), call.crow, call.col},
      std::move(numbers), input, values, bias);
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
  return computed(input, values, bias, {crow, col, geometry, relu, triton, false}, compute);
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
  return computed(grad, values, bias, {crow, col, geometry, false, triton, true}, compute);
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

std::optional<Tensor> eager_conv(pybind11::handle input,
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
      computed(signal, *parameter, b, {crow, col, numbers, relu, false, false}, compute);
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
