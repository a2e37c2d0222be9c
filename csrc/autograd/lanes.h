// What the ops on tensors in lanes (cpu/plan/lane_order.h) share, or of bfloat16 in rows
// (cpu/rows.h). In lanes their outputs hold zeros where the order is idle, as inputs and gradients
// have to. `batch` and `length` are those of the series.
// Gradients are computed by ops, too, which have none themselves. A gradient may be shared: only
// one that `is_own` is written into.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <pybind11/stl.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/library.h>

#include "../checks.h"
#include "../cpu/lanes.h"
#include "../cpu/launch.h"
#include "../cpu/rows.h"
#include "plain.h"

namespace sparseconv {

Tensor lanes_enter(const Tensor& input, int64_t margin);
Tensor lanes_leave(const Tensor& input, int64_t channels, int64_t batch, int64_t length);

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using OptionalTensor = std::optional<Tensor>;

// The order of tensors like this one. `margin`: of rows.
inline std::unique_ptr<KernelOrder> order_of(const Tensor& like,
                                             int64_t batch,
                                             int64_t length,
                                             int64_t margin) {
  TORCH_CHECK_VALUE(batch > 0 && length > 0 && margin >= 0,
                    "expected at least one series and one sample, but got ", batch, " of ", length);
  if (like.scalar_type() == at::kBFloat16) {
    TORCH_CHECK(checked_kernels().blocks != nullptr,
                "expected kernels for bfloat16, but SPARSECONV_CPU_ISA names another instruction "
                "set, or this CPU has none");
    return std::make_unique<RowOrder>(batch, length, margin);
  }
  TORCH_CHECK_TYPE(like.scalar_type() == at::kFloat || like.scalar_type() == at::kDouble,
                   "expected float32, float64 or bfloat16, but got ", like.scalar_type());
  return lanes_for(lane_order(batch, length, lanes_of(like)));
}
inline int64_t margin_of(const Tensor& rows, int64_t length) {
  const bool has = rows.scalar_type() == at::kBFloat16 && rows.dim() == 4;
  return has ? std::max<int64_t>(0, rows.size(2) - length) / 2 : 0;
}
// Of one that is in it.
inline std::unique_ptr<KernelOrder> order_of(const Tensor& like, int64_t batch, int64_t length) {
  return order_of(like, batch, length, margin_of(like, length));
}

// The tensor as kernels read it, once it is in this order, of any number of channels or of these.
inline Tensor checked(const Tensor& x,
                      const KernelOrder& order,
                      std::optional<int64_t> channels,
                      const char* name) {
  TORCH_CHECK_TYPE(x.is_cpu() && x.layout() == at::kStrided, "expected ", name,
                   " to be a dense tensor on the CPU");
  const std::vector<int64_t> sizes = order.sizes(channels.value_or(1));
  TORCH_CHECK_VALUE(x.dim() == 4 && (!channels || x.size(0) == sizes[0]) &&
                        x.sizes().slice(1) == at::IntArrayRef(sizes).slice(1),
                    "expected ", name, " of sizes ", sizes, ", the first for ",
                    channels ? std::to_string(*channels) : "all", " channels, but got ", x.sizes());
  check_memory(x, name);
  return order.readable(x.resolve_neg().contiguous());
}

inline Tensor checked_like(const Tensor& x,
                           const Tensor& like,
                           const KernelOrder& order,
                           std::optional<int64_t> channels,
                           const char* name) {
  check_same_type(like, x, name);
  return checked(x, order, channels, name);
}

// Weights and vectors: of the type of `like`, or with bfloat16 also float32.
inline void check_weights(const Tensor& x, const Tensor& like, const char* name) {
  if (like.scalar_type() == at::kBFloat16 && x.scalar_type() == at::kFloat && x.is_cpu()) {
    check_memory(x, name);
  } else {
    check_same_type(like, x, name);
  }
}

// A vector of a channel's numbers, or an undefined one.
inline Tensor vector_of(const OptionalTensor& x,
                        const Tensor& like,
                        int64_t channels,
                        const char* name) {
  if (!x.has_value()) {
    return {};
  }
  check_weights(*x, like, name);
  check_vector(*x, name, *x, channels);
  return x->resolve_neg().contiguous();
}
inline OptionalTensor optional(const Tensor& x) {
  return x.defined() ? OptionalTensor(x) : std::nullopt;
}

// Whether nothing but a list of a backward pass holds this gradient, so that its memory is free.
inline bool is_own(const Tensor& grad) {
  return !at::GradMode::is_enabled() && computes_plainly(grad, true) && grad.use_count() == 1 &&
         grad.storage().use_count() == 1 && grad.is_contiguous();
}

template <typename Function>
auto find_op(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Function>();
}

// Calls the op of this name, with the signature of its computation.
#define CALL(op)                                                         \
  ([] {                                                                  \
    static const auto found = find_op<decltype(op)>("sparseconv::" #op); \
    return found;                                                        \
  }()                                                                    \
       .call)

// What Python holds for an argument of an op.
template <typename T>
struct HeldBy {
  using Type = std::decay_t<T>;
};
template <>
struct HeldBy<at::IntArrayRef> {
  using Type = std::vector<int64_t>;
};
template <>
struct HeldBy<at::TensorList> {
  using Type = std::vector<Tensor>;
};
template <>
struct HeldBy<c10::string_view> {
  using Type = std::string;
};

// Makes `kernel` an op's implementation on the CPU, and adds a function of Python that calls the op
// at half the cost of torch.ops: it skips torch's parser of arguments, which knows any schema.
template <typename R, typename... A>
void implement(torch::Library& m, const char* name, R (*kernel)(A...)) {
  m.impl(name, kernel);
  direct_calls().push_back([name](pybind11::module_& module) {
    std::optional<c10::TypedOperatorHandle<R(A...)>> op;  // Python defines the schema later
    module.def(name, [name, op](const typename HeldBy<A>::Type&... arguments) mutable {
      if (!op) {
        op = find_op<R(A...)>(("sparseconv::" + std::string(name)).c_str());
      }
      const pybind11::gil_scoped_release release;
      return op->call(arguments...);
    });
  });
}

// Arguments of an op besides those that have gradients: torch drops what are too many undefined
// gradients.
constexpr size_t kOtherArguments = 8;

inline variable_list gradient_of_first(const Tensor& gradient) {
  variable_list gradients(1 + kOtherArguments);
  gradients[0] = gradient;
  return gradients;
}

// Computes a function of autograd; without a node if nothing can ask for gradients.
template <typename Function, typename... Arguments>
auto run_function(Arguments&&... arguments) {
  if (at::GradMode::is_enabled() || !runs_plainly(true)) {
    return Function::apply(std::forward<Arguments>(arguments)...);
  }
  AutogradContext unused;
  return Function::forward(&unused, std::forward<Arguments>(arguments)...);
}

// What autograd does for an op: Function's `forward` takes the op's arguments.
template <typename Function, typename Forward = decltype(Function::forward)>
struct Differentiable;
template <typename Function, typename... Arguments>
struct Differentiable<Function, Tensor(AutogradContext*, Arguments...)> {
  static Tensor call(Arguments... arguments) { return run_function<Function>(arguments...); }
};

// The gradients of `compute`, which calls ops that torch can transform, and differentiate again.
template <typename Compute>
variable_list gradients_by_torch(const variable_list& inputs, const Tensor& grad, Compute compute) {
  const bool again = at::GradMode::is_enabled();
  const at::AutoGradMode records(true);
  variable_list own, wanted;
  for (const Tensor& x : inputs) {  // views tell one that occurs twice, or depends on another
    const bool need = x.defined() && x.requires_grad();
    own.push_back(need ? x.view_as(x) : x);
    if (need) {
      wanted.push_back(own.back());
    }
  }
  variable_list found =
      torch::autograd::grad({compute(own)}, wanted, {grad}, std::nullopt, again, true);
  variable_list gradients(inputs.size() + kOtherArguments);
  for (size_t i = 0, next = 0; i < inputs.size(); ++i) {
    if (inputs[i].defined() && inputs[i].requires_grad()) {
      gradients[i] = found[next++];
    }
  }
  return gradients;
}

struct Order {
  int64_t batch, length;
  void keep(AutogradContext* ctx) const {
    ctx->saved_data["batch"] = batch;
    ctx->saved_data["length"] = length;
  }
  static Order of(AutogradContext* ctx) {
    return {ctx->saved_data["batch"].toInt(), ctx->saved_data["length"].toInt()};
  }
};

}  // namespace sparseconv
