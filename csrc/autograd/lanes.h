// What the ops on tensors in lanes (cpu/plan/lane_order.h) share. Their outputs hold zeros where
// the order is idle, as inputs and gradients have to. `batch` and `length` are those of the series.
// Gradients are computed by ops, too, which have none themselves. A gradient may be shared, so
// nothing is written into one.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>

#include "../checks.h"
#include "../cpu/lanes.h"
#include "../cpu/launch.h"

namespace sparseconv {

Tensor lanes_enter(const Tensor& input);

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using OptionalTensor = std::optional<Tensor>;

inline LaneOrder order_of(const Tensor& like, int64_t batch, int64_t length) {
  TORCH_CHECK_TYPE(like.scalar_type() == at::kFloat || like.scalar_type() == at::kDouble,
                   "expected float32 or float64, but got ", like.scalar_type());
  TORCH_CHECK_VALUE(batch > 0 && length > 0,
                    "expected at least one series and one sample, but got ", batch, " of ", length);
  return lane_order(batch, length, lanes_of(like));
}

// The tensor as kernels read it, once it is in this order; -1 channels: any number.
inline Tensor checked(const Tensor& x, const LaneOrder& order, int64_t channels, const char* name) {
  TORCH_CHECK_TYPE(x.is_cpu() && x.layout() == at::kStrided, "expected ", name,
                   " to be a dense tensor on the CPU");
  TORCH_CHECK_VALUE(x.dim() == 4 && (channels < 0 || x.size(0) == channels) &&
                        x.size(1) == order.groups && x.size(2) == order.rows &&
                        x.size(3) == order.lanes,
                    "expected ", name, " of ", channels, " channels in lanes, (C, ", order.groups,
                    ", ", order.rows, ", ", order.lanes, "), but got ", x.sizes());
  check_memory(x, name);
  return x.resolve_neg().contiguous();
}

inline Tensor checked_like(const Tensor& x,
                           const Tensor& like,
                           const LaneOrder& order,
                           int64_t channels,
                           const char* name) {
  check_same_type(like, x, name);
  return checked(x, order, channels, name);
}

// A vector of a channel's numbers, or an undefined one.
inline Tensor vector_of(const OptionalTensor& x,
                        const Tensor& like,
                        int64_t channels,
                        const char* name) {
  if (!x.has_value()) {
    return {};
  }
  check_vector(*x, name, like, channels);
  return x->resolve_neg().contiguous();
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
