#include "plain.h"

#include <ATen/PythonTorchFunctionTLS.h>
#include <ATen/autocast_mode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <torch/csrc/PyInterpreter.h>
#include <torch/csrc/autograd/forward_grad.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/jit/frontend/tracer.h>
#include <torch/csrc/utils/pybind.h>

#include <string_view>

namespace sparseconv {

namespace {

// Batched tensors, fake ones and the like have no storage, or another layout.
bool is_plain(const at::Tensor& x) {
  return x.layout() == at::kStrided && x.is_cpu() && x.has_storage() && !x._is_zerotensor() &&
         !x.unsafeGetTensorImpl()->is_python_dispatch();
}

// Whether there are no torch function modes but those of torch.set_default_device().
bool watches_new_tensors_only() {
  const int64_t modes = at::impl::PythonTorchFunctionTLS::stack_len();
  if (modes == 0) {
    return true;
  }
  const pybind11::gil_scoped_acquire gil;
  for (int64_t i = 0; i < modes; ++i) {
    const auto& mode = at::impl::PythonTorchFunctionTLS::get_stack_at(i);
    if (std::string_view(Py_TYPE(mode->ptr(getPyInterpreter()))->tp_name) != "DeviceContext") {
      return false;
    }
  }
  return true;
}

}  // namespace

bool runs_plainly(bool may_cast) {
  return (may_cast || !at::autocast::is_autocast_enabled(at::kCPU)) &&
         !c10::impl::TorchDispatchModeTLS::any_modes_set() && watches_new_tensors_only() &&
         !c10::impl::tls_is_dispatch_key_included(
             c10::DispatchKey::FuncTorchDynamicLayerFrontMode) &&
         !c10::impl::tls_is_dispatch_key_included(c10::DispatchKey::Functionalize) &&
         !c10::impl::tls_is_dispatch_key_excluded(c10::DispatchKey::AutogradCPU) &&
         torch::autograd::ForwardADLevel::try_get_by_idx(0) == nullptr &&
         !torch::jit::tracer::isTracing();
}

bool computes_plainly(const at::Tensor& x, bool may_cast) {
  return runs_plainly(may_cast) && is_plain(x);
}

std::optional<at::Tensor> plain_tensor(pybind11::handle x) {
  if (!THPVariable_CheckExact(x.ptr())) {
    return {};
  }
  const at::Tensor& tensor = THPVariable_Unpack(x.ptr());
  return is_plain(tensor) && !tensor.is_neg() ? std::optional(tensor) : std::nullopt;
}

std::vector<std::function<void(pybind11::module_&)>>& direct_calls() {
  static std::vector<std::function<void(pybind11::module_&)>> calls;
  return calls;
}

GeometryNumbers geometry_numbers(pybind11::handle geometry) {
  PyObject* tuple = geometry.ptr();
  TORCH_CHECK_TYPE(PyTuple_Check(tuple) && PyTuple_GET_SIZE(tuple) == kGeometryNumbers,
                   "expected a Geometry");
  GeometryNumbers numbers;
  for (Py_ssize_t i = 0; i < kGeometryNumbers; ++i) {
    numbers[i] = PyLong_AsLongLong(PyTuple_GET_ITEM(tuple, i));
    if (numbers[i] == -1 && PyErr_Occurred() != nullptr) {
      throw pybind11::error_already_set();
    }
  }
  return numbers;
}

at::Tensor detached_snapshot(const at::Tensor& x) {
  return at::Tensor(
      x.unsafeGetTensorImpl()->shallow_copy_and_detach(c10::VariableVersion(0), false));
}

}  // namespace sparseconv
