#include "chain.h"

#include <ATen/SavedTensorHooks.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/utils/pybind.h>

#include "../checks.h"
#include "../cpu/isa/dispatch.h"
#include "plain.h"

namespace sparseconv {

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

pybind11::list described(const Chain& chain) {
  pybind11::list stages;
  for (const Chain::Stage& stage : chain.stages()) {
    if (stage.kind == Chain::Kind::conv) {
      stages.append(
          pybind11::make_tuple("conv", stage.crow, stage.col, stage.geometry, stage.relu));
    } else if (stage.kind == Chain::Kind::pointwise) {
      stages.append(pybind11::make_tuple("pointwise"));
    } else {
      stages.append(pybind11::make_tuple("norm_relu", stage.eps));
    }
  }
  return stages;
}

// Gradients by a function of sparseconv/functional/chain.py, which have gradients themselves.
// inputs: x and the parameters, undefined where there is none.
variable_list gradients_by_python(const Chain& chain,
                                  const Tensor& grad,
                                  const variable_list& inputs,
                                  const std::vector<bool>& needed) {
  const pybind11::gil_scoped_acquire gil;
  const pybind11::object found =
      pybind11::module_::import("sparseconv.functional.chain")
          .attr("gradients_by_python")(described(chain), grad, inputs, needed);
  return tensors_of(found);
}

// What the forward pass takes besides the tensors that have gradients.
struct Call {
  std::shared_ptr<Chain> chain;
  const Tensor& input;               // frozen
  const Chain::Tensors& originals;   // the parameters
  const Chain::Tensors& parameters;  // the same, frozen
  const std::vector<Chain::Statistics>& statistics;
};

struct ChainFunction : torch::autograd::Function<ChainFunction> {
  // variables: x and the parameters that exist.
  static Tensor forward(AutogradContext* ctx, const at::TensorList& variables, const Call& call) {
    Chain::Result result = call.chain->forward(call.input, call.parameters, call.statistics, true);
    variable_list saved = {variables[0]};
    for (const std::optional<Tensor>& parameter : call.originals) {
      saved.push_back(parameter.value_or(Tensor()));
    }
    for (const std::optional<Tensor>& parameter : call.parameters) {
      saved.push_back(parameter.value_or(Tensor()));
    }
    std::move(result.kept.begin(), result.kept.end(), std::back_inserter(saved));
    ctx->save_for_backward(std::move(saved));
    ctx->saved_data["chain"] = held_in_tensor(call.chain);
    ctx->saved_data["sizes"] = result.output.sizes().vec();
    return result.output;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    variable_list inputs = ctx->get_saved_variables();
    const Tensor held = ctx->saved_data["chain"].toTensor();
    const Chain& chain = *static_cast<const Chain*>(held.const_data_ptr());
    for (const Chain::Stage& stage : chain.stages()) {
      stage.check_untouched();
    }
    const auto own = inputs.begin() + 1 + 2 * chain.stages().size();
    const auto end = own + 2 * chain.stages().size();
    // The parameters as they were.
    Chain::Tensors parameters;
    std::transform(own, end, std::back_inserter(parameters), [](const Tensor& parameter) {
      return parameter.defined() ? std::optional(parameter) : std::nullopt;
    });
    const variable_list kept(end, inputs.end());
    inputs.erase(own, inputs.end());
    for (size_t i = 0; i < parameters.size(); ++i) {
      if (parameters[i]) {
        check_memory(*parameters[i], "the parameters");
        TORCH_CHECK_VALUE(inputs[1 + i].sizes() == parameters[i]->sizes() &&
                              inputs[1 + i].const_data_ptr() == parameters[i]->const_data_ptr(),
                          "expected the parameter of shape ", parameters[i]->sizes(),
                          " as in the forward pass, but its data has been replaced since then");
      }
    }
    // What is not asked for, as in autograd.grad(y, x), is not computed.
    std::vector<bool> needed;
    size_t edge = 0;
    for (const Tensor& input : inputs) {
      needed.push_back(input.defined() && ctx->needs_input_grad(edge++));
    }
    variable_list found;
    if (at::GradMode::is_enabled() || !computes_plainly(grads[0], chain.in_rows())) {
      found = gradients_by_python(chain, grads[0], inputs, needed);
    } else {
      const std::vector<int64_t> sizes = ctx->saved_data["sizes"].toIntVector();
      TORCH_CHECK_VALUE(grads[0].sizes() == at::IntArrayRef(sizes),
                        "expected grad_output of shape ", sizes, ", but got ", grads[0].sizes());
      if (!chain.in_rows()) {
        check_same_type(inputs[0], grads[0], "grad_output");
      }
      for (auto& gradient : chain.backward(grads[0], kept, parameters, needed)) {
        const Tensor& input = inputs[found.size()];
        found.push_back(gradient ? gradient->to(input.scalar_type()) : Tensor());
      }
    }
    variable_list gradients;
    for (size_t i = 0; i < inputs.size(); ++i) {
      if (inputs[i].defined()) {
        gradients.push_back(found[i]);
      }
    }
    gradients.emplace_back();  // of the call
    return gradients;
  }
};

// Appends the tensor or None; false if it is neither, or not an ordinary tensor.
bool append(Chain::Tensors& tensors, pybind11::handle object) {
  tensors.push_back(object.is_none() ? std::nullopt : plain_tensor(object));
  return object.is_none() || tensors.back().has_value();
}

}  // namespace

std::optional<Tensor> plain_chain(const std::shared_ptr<Chain>& chain,
                                  pybind11::handle input,
                                  const pybind11::list& parameters,
                                  const pybind11::list& statistics) {
  choose_kernels();
  const std::optional<Tensor> x = plain_tensor(input);
  if (!x || !runs_plainly(chain->in_rows())) {
    return {};
  }
  Chain::Tensors originals, now;
  for (const pybind11::handle parameter : parameters) {
    if (!append(originals, parameter)) {
      return {};
    }
    now.push_back(originals.back() ? std::optional(frozen(*originals.back())) : std::nullopt);
  }
  std::vector<Chain::Statistics> kept;
  for (const pybind11::handle stage : statistics) {
    kept.emplace_back();
    if (stage.is_none() || kept.size() > chain->stages().size()) {
      continue;
    }
    const bool training = chain->stages()[kept.size() - 1].training;
    const auto four = pybind11::cast<pybind11::tuple>(stage);
    Chain::Tensors found;
    for (size_t i = 0; i < 3; ++i) {
      // Those of inference mode are updated there alone, as torch has it.
      if (!append(found, four[i]) || (training && found[i] && found[i]->is_inference())) {
        return {};
      }
    }
    if (found[2]) {
      check_memory(*found[2], "num_batches_tracked");  // torch would write to it nevertheless
    }
    kept.back() = {found[0], found[1], found[2], four[3].cast<std::optional<double>>()};
  }
  const Tensor x_now = frozen(*x);
  const pybind11::gil_scoped_release release;
  if (!fits([&] { chain->check(x_now, now, kept); })) {
    return {};
  }
  variable_list variables = {*x};
  for (const std::optional<Tensor>& parameter : originals) {
    if (parameter) {
      variables.push_back(*parameter);
    }
  }
  const bool recorded =
      at::GradMode::is_enabled() && std::any_of(variables.begin(), variables.end(),
                                                [](const Tensor& t) { return t.requires_grad(); });
  // Tensors of inference mode cannot be saved, and hooks see what each module saves.
  if (recorded && (at::SavedTensorDefaultHooks::get_hooks(true).has_value() ||
                   std::any_of(variables.begin(), variables.end(),
                               [](const Tensor& t) { return t.is_inference(); }))) {
    return {};
  }
  // A norm by running statistics has no gradients here.
  if (recorded && std::any_of(chain->stages().begin(), chain->stages().end(), [](const auto& s) {
        return s.kind == Chain::Kind::norm_relu && !s.training;
      })) {
    return {};
  }
  return recorded ? ChainFunction::apply(at::TensorList(variables),
                                         Call{chain, x_now, originals, now, kept})
                  : chain->forward(x_now, now, kept, false).output;
}

}  // namespace sparseconv
