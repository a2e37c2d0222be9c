// Max pooling of series (N, C, L) with its gradient: torch's own stores where each maximum was
// found, which takes many times as long as finding it again.

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
      variable_list found = gradients_by_torch({saved[0]}, grads[0], [&](const variable_list& x) {
        return at::max_pool1d(x[0], w[0], w[1], w[2]);
      });
      found.resize(4);
      return found;
    }
    return {CALL(max_pool_backward)(grads[0], saved[0], saved[1], w[0], w[1], w[2]), {}, {}, {}};
  }
};

}  // namespace

}  // namespace sparseconv

TORCH_LIBRARY_IMPL(sparseconv, CPU, m) {
  m.impl("max_pool", sparseconv::max_pool);
  m.impl("max_pool_backward", sparseconv::max_pool_backward);
}

TORCH_LIBRARY_IMPL(sparseconv, Autograd, m) {
  m.impl("max_pool", [](const at::Tensor& input, int64_t size, int64_t stride, int64_t padding) {
    return sparseconv::Pool::apply(input, size, stride, padding);
  });
  m.impl("max_pool_backward", torch::autograd::autogradNotImplementedFallback());
}
