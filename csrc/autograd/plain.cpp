#include "plain.h"

#include <ATen/PythonTorchFunctionTLS.h>
#include <ATen/autocast_mode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <torch/csrc/autograd/forward_grad.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/jit/frontend/tracer.h>
#include <torch/csrc/utils/pybind.h>

namespace sparseconv {

namespace {

// Batched tensors, fake ones and the like have no storage, or another layout.
bool is_plain(const at::Tensor& x) {
  return x.layout() == at::kStrided && x.is_cpu() && x.has_storage() && !x._is_zerotensor() &&
         !x.unsafeGetTensorImpl()->is_python_dispatch();
}

}  // namespace

bool runs_plainly() {
  return !at::autocast::is_autocast_enabled(at::kCPU) &&
         !c10::impl::TorchDispatchModeTLS::any_modes_set() &&
         at::impl::PythonTorchFunctionTLS::stack_len() == 0 &&
         !c10::impl::tls_is_dispatch_key_included(
             c10::DispatchKey::FuncTorchDynamicLayerFrontMode) &&
         !c10::impl::tls_is_dispatch_key_included(c10::DispatchKey::Functionalize) &&
         !c10::impl::tls_is_dispatch_key_excluded(c10::DispatchKey::AutogradCPU) &&
         torch::autograd::ForwardADLevel::try_get_by_idx(0) == nullptr &&
         !torch::jit::tracer::isTracing();
}

bool computes_plainly(const at::Tensor& x) {
  return runs_plainly() && is_plain(x);
}

std::optional<at::Tensor> plain_tensor(pybind11::handle x) {
  if (!THPVariable_CheckExact(x.ptr())) {
    return {};
  }
  const at::Tensor& tensor = THPVariable_Unpack(x.ptr());
  return is_plain(tensor) && !tensor.is_neg() ? std::optional(tensor) : std::nullopt;
}

std::vector<at::Tensor> tensors_of(const pybind11::object& found) {
  std::vector<at::Tensor> tensors;
  for (const pybind11::handle tensor : found) {
    tensors.push_back(tensor.is_none() ? at::Tensor() : tensor.cast<at::Tensor>());
  }
  return tensors;
}

at::Tensor frozen(const at::Tensor& x) {
  return at::Tensor(
      x.unsafeGetTensorImpl()->shallow_copy_and_detach(c10::VariableVersion(0), false));
}

}  // namespace sparseconv
