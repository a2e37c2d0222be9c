// Max pooling of series (N, C, L) with its gradient: torch's own stores where each maximum was
// found, which takes many times as long as finding it again. And of tensors in lanes pooling,
// averages and dropout.

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/max_pool1d.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

#include "lanes.h"

namespace sparseconv {

namespace {

struct Windows {
  int64_t size, stride, padding, length, outputs;
};

Windows windows_of(const Tensor& input, int64_t size, int64_t stride, int64_t padding) {
  check_signal(input, "input");
  TORCH_CHECK_VALUE(size > 0 && stride > 0 && padding >= 0 && padding <= size / 2,
                    "expected a size and a stride above 0, and a padding of at most half the size, "
                    "but got ",
                    size, ", ", stride, " and ", padding);
  const int64_t room = input.size(2) + 2 * padding - size;
  TORCH_CHECK_VALUE(room >= 0, "expected a window of at most ", input.size(2) + 2 * padding,
                    " samples, but got ", size);
  return {size, stride, padding, input.size(2), room / stride + 1};
}

Tensor max_pool(const Tensor& input, int64_t size, int64_t stride, int64_t padding) {
  const ForkGuard fork_guard;
  windows_of(input, size, stride, padding);
  return at::max_pool1d(input, size, stride, padding);
}

// Adds the gradients of one series. Of equal samples the first is the largest, and of several NaN
// the last, as in torch's loop.
template <typename T>
void add_gradients(const Windows& w, const T* x, const T* y, const T* grads, T* out) {
  for (int64_t i = 0; i < w.outputs; ++i) {
    const int64_t first = i * w.stride - w.padding;
    const int64_t begin = std::max<int64_t>(first, 0), end = std::min(first + w.size, w.length);
    const T largest = y[i], of_each[2] = {T(0), grads[i]};  // by index: a branch would be guessed
    bool open = largest == largest;
    for (int64_t j = begin; j < end; ++j) {
      const bool found = open & (x[j] == largest);
      out[j] += of_each[found];
      open &= !found;
    }
    for (int64_t j = end; largest != largest && j-- > begin;) {
      if (x[j] != x[j]) {
        out[j] += grads[i];
        break;
      }
    }
  }
}

Tensor max_pool_backward(const Tensor& grad,
                         const Tensor& input,
                         const Tensor& output,
                         int64_t size,
                         int64_t stride,
                         int64_t padding) {
  const ForkGuard fork_guard;
  const Windows w = windows_of(input, size, stride, padding);
  for (const Tensor& y : {grad, output}) {
    check_same_type(input, y, "grad_output");
    TORCH_CHECK_VALUE(y.dim() == 3 && y.size(0) == input.size(0) && y.size(1) == input.size(1) &&
                          y.size(2) == w.outputs,
                      "expected grad_output and output of length ", w.outputs, ", but got ",
                      y.sizes());
  }
  const auto plain = [](const Tensor& t) { return t.resolve_neg().contiguous(); };
  const Tensor x = plain(input), y = plain(output), dy = plain(grad);
  Tensor found = at::zeros(x.sizes(), x.options());
  const int64_t grain = 1 + 16 * 1024 / (1 + w.outputs * w.size);
  AT_DISPATCH_FLOATING_TYPES_AND(at::kBFloat16, x.scalar_type(), "max_pool", [&] {
    at::parallel_for(0, x.size(0) * x.size(1), grain, [&](int64_t row, int64_t end) {
      for (; row < end; ++row) {
        add_gradients(w, x.const_data_ptr<scalar_t>() + row * w.length,
                      y.const_data_ptr<scalar_t>() + row * w.outputs,
                      dy.const_data_ptr<scalar_t>() + row * w.outputs,
                      found.mutable_data_ptr<scalar_t>() + row * w.length);
      }
    });
  });
  return found;
}

struct Pool : torch::autograd::Function<Pool> {
  static Tensor forward(AutogradContext* ctx,
                        const Tensor& input,
                        int64_t size,
                        int64_t stride,
                        int64_t padding) {
    const at::AutoDispatchBelowADInplaceOrView below;
    const Tensor output = CALL(max_pool)(input, size, stride, padding);
    ctx->save_for_backward({input, output});
    ctx->saved_data["window"] = std::vector<int64_t>{size, stride, padding};
    return output;
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const std::vector<int64_t> w = ctx->saved_data["window"].toIntVector();
    const variable_list saved = ctx->get_saved_variables();
    if (at::GradMode::is_enabled()) {
      return gradients_by_torch({saved[0]}, grads[0], [&](const variable_list& x) {
        return at::max_pool1d(x[0], w[0], w[1], w[2]);
      });
    }
    return gradient_of_first(
        CALL(max_pool_backward)(grads[0], saved[0], saved[1], w[0], w[1], w[2]));
  }
};

// The length after pooling.
int64_t checked_pooling(const Tensor& like,
                        int64_t size,
                        int64_t stride,
                        int64_t batch,
                        int64_t length) {
  if (stride == 1) {
    TORCH_CHECK_VALUE(size > 0 && size % 2 == 1 && size / 2 <= kPoolRadius,
                      "expected an odd size in [1, ", 2 * kPoolRadius + 1,
                      "] of windows with stride 1, but got ", size);
    return length;
  }
  TORCH_CHECK_VALUE(size > 0 && size <= stride && size <= length, "expected a size in [1, ",
                    std::min(stride, length), "] of windows with stride ", stride, ", but got ",
                    size);
  const int64_t pooled = pooled_length(length, size, stride);
  TORCH_CHECK_VALUE(like.scalar_type() == at::kBFloat16 ||
                        fits_pooling(lane_order(batch, length, lanes_of(like)),
                                     lane_order(batch, pooled, lanes_of(like)), stride),
                    "expected windows that are rows of lanes; see pools_in_lanes");
  return pooled;
}

Tensor lanes_max_pool(const Tensor& input,
                      int64_t size,
                      int64_t stride,
                      int64_t batch,
                      int64_t length) {
  const ForkGuard fork_guard;
  const auto order = order_of(input, batch, length);
  const Tensor x = checked(input, *order, {}, "input");
  checked_pooling(input, size, stride, batch, length);
  return order->max_pool(x, {}, size, stride);
}

Tensor lanes_max_pool_backward(const Tensor& grad,
                               const Tensor& input,
                               int64_t size,
                               int64_t stride,
                               int64_t batch,
                               int64_t length) {
  const ForkGuard fork_guard;
  const auto order = order_of(input, batch, length);
  const Tensor x = checked(input, *order, {}, "input");
  const int64_t pooled = checked_pooling(input, size, stride, batch, length);
  const auto of_grad = order_of(input, batch, pooled, margin_of(input, length));
  const Tensor dy = checked_like(grad, input, *of_grad, {}, "grad_output");
  TORCH_CHECK_VALUE(grad.size(0) == input.size(0), "expected grad_output of ", input.size(0),
                    " channels or panels, but got ", grad.size(0));
  return order->max_pool(x, dy, size, stride);
}

struct LanesPool : torch::autograd::Function<LanesPool> {
  static Tensor forward(AutogradContext* ctx,
                        const Tensor& input,
                        int64_t size,
                        int64_t stride,
                        int64_t batch,
                        int64_t length) {
    const at::AutoDispatchBelowADInplaceOrView below;
    ctx->save_for_backward({input});
    ctx->saved_data["size"] = size;
    ctx->saved_data["stride"] = stride;
    Order{batch, length}.keep(ctx);
    return CALL(lanes_max_pool)(input, size, stride, batch, length);
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const Order y = Order::of(ctx);
    const Tensor input = ctx->get_saved_variables()[0];
    const int64_t size = ctx->saved_data["size"].toInt();
    const int64_t stride = ctx->saved_data["stride"].toInt();
    if (at::GradMode::is_enabled() || !computes_plainly(grads[0], true)) {
      const int64_t channels =
          input.size(0) * (input.scalar_type() == at::kBFloat16 ? kPanelChannels : 1);
      return gradients_by_torch({input}, grads[0], [&](const variable_list& x) {
        const Tensor signal = CALL(lanes_leave)(x[0], channels, y.batch, y.length);
        const int64_t padding = stride == 1 ? size / 2 : 0;
        return CALL(lanes_enter)(at::max_pool1d(signal, size, stride, padding),
                                 margin_of(input, y.length));
      });
    }
    return gradient_of_first(
        CALL(lanes_max_pool_backward)(grads[0], input, size, stride, y.batch, y.length));
  }
};

// The average of each series, (N, C).
Tensor lanes_mean(const Tensor& input, int64_t channels, int64_t batch, int64_t length) {
  const ForkGuard fork_guard;
  const auto order = order_of(input, batch, length);
  return order->mean(checked(input, *order, channels, "input"), channels);
}

struct Mean : torch::autograd::Function<Mean> {
  static Tensor forward(AutogradContext* ctx,
                        const Tensor& input,
                        int64_t channels,
                        int64_t batch,
                        int64_t length) {
    const at::AutoDispatchBelowADInplaceOrView below;
    Order{batch, length}.keep(ctx);
    ctx->saved_data["margin"] = margin_of(input, length);
    return CALL(lanes_mean)(input, channels, batch, length);
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const Order y = Order::of(ctx);
    const Tensor each = grads[0].div(static_cast<double>(y.length)).unsqueeze(2);
    return gradient_of_first(
        CALL(lanes_enter)(each.expand({-1, -1, y.length}), ctx->saved_data["margin"].toInt()));
  }
};

// Of any contiguous tensor. The same seed drops the same elements.
Tensor lanes_dropout(const Tensor& input, double p, int64_t seed) {
  const ForkGuard fork_guard;
  TORCH_CHECK_VALUE(p >= 0 && p <= 1, "expected a probability in [0, 1], but got ", p);
  TORCH_CHECK_TYPE(
      input.is_cpu() && input.layout() == at::kStrided && input.scalar_type() != at::kHalf,
      "expected a tensor of float32, float64 or bfloat16 on the CPU");
  check_memory(input, "input");
  const Tensor x = input.resolve_neg().contiguous();
  const Element element = element_of(x);
  // Room behind it, as convolutions in rows need it.
  const Tensor all = at::empty({x.numel() + kStripRows * kPanelChannels}, x.options());
  Tensor output = all.narrow(0, 0, x.numel()).view(x.sizes());
  const auto bits = static_cast<uint64_t>(seed);
  const Draws draws = {static_cast<uint32_t>(bits) | 1, static_cast<uint32_t>(bits >> 32),
                       static_cast<uint32_t>((1 - p) * kDrawsEnd)};
  const Dropout problem = {x.const_data_ptr(), output.data_ptr(), x.numel(), draws,
                           p < 1 ? 1 / (1 - p) : 0};
  run_kernel(problem, &KernelTable::dropout, element, x.numel() / 16);
  return output;
}

struct Drop : torch::autograd::Function<Drop> {
  static Tensor forward(AutogradContext* ctx, const Tensor& input, double p, int64_t seed) {
    const at::AutoDispatchBelowADInplaceOrView below;
    ctx->saved_data["p"] = p;
    ctx->saved_data["seed"] = seed;
    return CALL(lanes_dropout)(input, p, seed);
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const double p = ctx->saved_data["p"].toDouble();
    return {CALL(lanes_dropout)(grads[0], p, ctx->saved_data["seed"].toInt()), {}, {}};
  }
};

}  // namespace

}  // namespace sparseconv

TORCH_LIBRARY_IMPL(sparseconv, CPU, m) {
  using namespace sparseconv;
  implement(m, "max_pool", max_pool);
  implement(m, "max_pool_backward", max_pool_backward);
  implement(m, "lanes_max_pool", lanes_max_pool);
  implement(m, "lanes_max_pool_backward", lanes_max_pool_backward);
  implement(m, "lanes_mean", lanes_mean);
  implement(m, "lanes_dropout", lanes_dropout);
}

TORCH_LIBRARY_IMPL(sparseconv, Autograd, m) {
  using namespace sparseconv;
  m.impl("max_pool", Differentiable<Pool>::call);
  m.impl("lanes_max_pool", Differentiable<LanesPool>::call);
  m.impl("lanes_mean", Differentiable<Mean>::call);
  m.impl("lanes_dropout", Differentiable<Drop>::call);
  for (const char* name : {"max_pool_backward", "lanes_max_pool_backward"}) {
    m.impl(name, torch::autograd::autogradNotImplementedFallback());
  }
}
