// What the ops on tensors in lanes (cpu/plan/lane_order.h) share, or of bfloat16 in rows
// (cpu/rows.h). In lanes their outputs hold zeros where the order is idle, as inputs and gradients
// have to. `batch` and `length` are those of the series.
// Gradients are computed by ops, too, which have none themselves. A gradient may be shared: only
// one that a pass owns (`owns_grad`) is written into.
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

inline int64_t margin_of(const Tensor& rows, int64_t length) {
  const bool has = rows.scalar_type() == at::kBFloat16 && rows.dim() == 4;
  return has ? std::max<int64_t>(0, rows.size(2) - length) / 2 : 0;
}

// Kernels load whole vectors of lanes; memory that torch did not allocate may begin anywhere.
inline Tensor aligned(const Tensor& x) {
  const Tensor own = x.resolve_neg().contiguous();
  const auto address = reinterpret_cast<uintptr_t>(own.const_data_ptr());
  return address % kRowBytes == 0 ? own : own.clone();
}

// The order of tensors like `like`, and the checks of an op's other arguments. `margin`: of rows.
struct Ordered {
  const Tensor like;
  std::unique_ptr<KernelOrder> order;

  Ordered(const Tensor& like, int64_t batch, int64_t length)
      : Ordered(like, batch, length, margin_of(like, length)) {}
  Ordered(const Tensor& like, int64_t batch, int64_t length, int64_t margin) : like(like) {
    TORCH_CHECK_VALUE(batch > 0 && length > 0 && margin >= 0,
                      "expected at least one series and one sample, but got ", batch, " of ",
                      length);
    if (like.scalar_type() == at::kBFloat16) {
      TORCH_CHECK(checked_kernels().blocks != nullptr,
                  "expected kernels for bfloat16, but SPARSECONV_CPU_ISA names another instruction "
                  "set, or this CPU has none");
      order = std::make_unique<RowOrder>(batch, length, margin);
      return;
    }
    TORCH_CHECK_TYPE(like.scalar_type() == at::kFloat || like.scalar_type() == at::kDouble,
                     "expected float32, float64 or bfloat16, but got ", like.scalar_type());
    order = lanes_for(lane_order(batch, length, lanes_of(like)));
  }
  const KernelOrder* operator->() const { return order.get(); }

  // The tensor as kernels read it, once it is in this order, of any number of channels or of these.
  Tensor checked(const Tensor& x, std::optional<int64_t> channels, const char* name) const {
    TORCH_CHECK_TYPE(x.is_cpu() && x.layout() == at::kStrided, "expected ", name,
                     " to be a dense tensor on the CPU");
    check_same_type(like, x, name);
    const std::vector<int64_t> sizes = order->sizes(channels.value_or(1));
    TORCH_CHECK_VALUE(x.dim() == 4 && (!channels || x.size(0) == sizes[0]) &&
                          x.sizes().slice(1) == at::IntArrayRef(sizes).slice(1),
                      "expected ", name, " of sizes ", sizes, ", the first for ",
                      channels ? std::to_string(*channels) : "all", " channels, but got ",
                      x.sizes());
    return order->readable(aligned(x));
  }
  // The same, or an undefined tensor.
  Tensor checked(const OptionalTensor& x, std::optional<int64_t> channels, const char* name) const {
    return x.has_value() ? checked(*x, channels, name) : Tensor();
  }

  // Weights and vectors: of the type of `like`, or with bfloat16 also float32.
  void check_weights(const Tensor& x, const char* name) const {
    if (like.scalar_type() == at::kBFloat16 && x.scalar_type() == at::kFloat && x.is_cpu()) {
      check_memory(x, name);
    } else {
      check_same_type(like, x, name);
    }
  }
  // A vector of a channel's numbers, or an undefined one.
  Tensor vector(const OptionalTensor& x, int64_t channels, const char* name) const {
    if (!x.has_value()) {
      return {};
    }
    check_weights(*x, name);
    check_vector(*x, name, *x, channels);
    return x->resolve_neg().contiguous();
  }
};

inline OptionalTensor optional(const Tensor& x) {
  return x.defined() ? OptionalTensor(x) : std::nullopt;
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
// While it lives, autograd neither is called nor records.
struct BelowAutograd {
  const at::AutoDispatchBelowADInplaceOrView below;
  const at::NoGradGuard no_grad;
};
// As CALL, below autograd: for what an op computes before `recorded`.
#define COMPUTE(op)                \
  [](const auto&... arguments) {   \
    const BelowAutograd below;     \
    return CALL(op)(arguments...); \
  }

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

template <auto kKernel, typename = decltype(kKernel)>
struct Kernel;
template <auto kKernel, typename R, typename... A>
struct Kernel<kKernel, R (*)(A...)> {
  static R run(A... arguments) {
    const ForkGuard fork_guard;
    return kKernel(std::forward<A>(arguments)...);
  }
  // Calls the op of this name.
  static void define(pybind11::module_& module, const char* name) {
    std::optional<c10::TypedOperatorHandle<R(A...)>> op;  // Python defines the schema later
    module.def(name, [name, op](const typename HeldBy<A>::Type&... arguments) mutable {
      if (!op) {
        op = find_op<R(A...)>(("sparseconv::" + std::string(name)).c_str());
      }
      const pybind11::gil_scoped_release release;
      return op->call(arguments...);
    });
  }
};

// Makes kKernel an op's implementation, and adds a function of Python that calls the op at half the
// cost of torch.ops: it skips torch's parser of arguments, which knows any schema.
template <auto kKernel, c10::DispatchKey kKey = c10::DispatchKey::CPU>
void implement(torch::Library& m, const char* name) {
  m.impl(name, torch::dispatch(kKey, Kernel<kKernel>::run));
  direct_calls().push_back([name](auto& module) { Kernel<kKernel>::define(module, name); });
}
// And `differentiable` what autograd calls for it.
template <auto kKernel, typename Differentiable>
void implement(torch::Library& m, const char* name, Differentiable differentiable) {
  implement<kKernel>(m, name);
  m.impl(name, torch::dispatch(c10::DispatchKey::Autograd, differentiable));
}

// A backward pass.
struct Backward {
  const AutogradContext* ctx;
  const variable_list saved;        // tensors of the forward pass
  const std::vector<int64_t> kept;  // and numbers
  const Tensor& grad;               // of the output
  const bool again;                 // whether gradients of the gradients may be asked for

  bool needs(size_t input) const { return ctx->needs_input_grad(input); }
  // The last kN numbers.
  template <size_t kN>
  std::array<int64_t, kN> numbers() const {
    std::array<int64_t, kN> found;
    std::copy_n(kept.end() - kN, kN, found.begin());
    return found;
  }
  // Whether nothing but this pass holds the gradient, so that its memory is free.
  bool owns_grad() const {
    return !again && computes_plainly(grad, true) && grad.use_count() == 1 &&
           grad.storage().use_count() == 1 && grad.is_contiguous();
  }
};

template <variable_list (*kGradients)(const Backward&)>
struct Recorded : torch::autograd::Function<Recorded<kGradients>> {
  struct Call {
    const Tensor& output;
    variable_list saved;
    std::vector<int64_t> numbers;
  };
  template <typename... Inputs>
  static Tensor forward(AutogradContext* ctx, Call call, const Inputs&...) {
    ctx->save_for_backward(std::move(call.saved));
    // In one entry, because each one costs time in every call.
    ctx->saved_data["numbers"] = std::move(call.numbers);
    return call.output;
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const ForkGuard fork_guard;
    variable_list found =
        kGradients({ctx, ctx->get_saved_variables(), ctx->saved_data["numbers"].toIntVector(),
                    grads[0], at::GradMode::is_enabled()});
    found.insert(found.begin(), Tensor());  // of the call
    return found;
  }
};

// The output of an op, as autograd records it: kGradients computes a gradient for each of the
// `inputs`, from the tensors and numbers that are kept. Without a node if nothing can ask for it.
template <variable_list (*kGradients)(const Backward&), typename... Inputs>
Tensor recorded(const Tensor& output,
                variable_list saved,
                std::vector<int64_t> numbers,
                const Inputs&... inputs) {
  if (!at::GradMode::is_enabled() && runs_plainly(true)) {
    return output;
  }
  using Node = Recorded<kGradients>;
  return Node::apply(typename Node::Call{output, std::move(saved), std::move(numbers)}, inputs...);
}

// The gradients of `compute`, which calls ops that torch can transform, and differentiate again.
template <typename Compute>
variable_list gradients_by_torch(const Backward& b, const variable_list& inputs, Compute compute) {
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
      torch::autograd::grad({compute(own)}, wanted, {b.grad}, std::nullopt, b.again, true);
  variable_list gradients(inputs.size());
  for (size_t i = 0, next = 0; i < inputs.size(); ++i) {
    if (inputs[i].defined() && inputs[i].requires_grad()) {
      gradients[i] = found[next++];
    }
  }
  return gradients;
}

}  // namespace sparseconv
