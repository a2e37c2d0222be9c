// Max pooling of series (N, C, L) with its gradient: torch's own stores where each maximum was
// found, which takes many times as long as finding it again. And of tensors in lanes pooling,
// averages and dropout.

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/max_pool1d.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <bit>

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

variable_list max_pool_gradients(const Backward& b) {
  const int64_t size = b.kept[0], stride = b.kept[1], padding = b.kept[2];
  if (b.again) {
    return gradients_by_torch(b, {b.saved[0]}, [&](const variable_list& x) {
      return at::max_pool1d(x[0], size, stride, padding);
    });
  }
  return {CALL(max_pool_backward)(b.grad, b.saved[0], b.saved[1], size, stride, padding)};
}

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
  const Ordered own(input, batch, length);
  const Tensor x = own.checked(input, {}, "input");
  checked_pooling(input, size, stride, batch, length);
  return own->max_pool(x, {}, size, stride);
}

Tensor lanes_max_pool_backward(const Tensor& grad,
                               const Tensor& input,
                               int64_t size,
                               int64_t stride,
                               int64_t batch,
                               int64_t length) {
  const Ordered own(input, batch, length);
  const Tensor x = own.checked(input, {}, "input");
  const int64_t pooled = checked_pooling(input, size, stride, batch, length);
  const Ordered of_grad(input, batch, pooled, margin_of(input, length));
  const Tensor dy = of_grad.checked(grad, {}, "grad_output");
  TORCH_CHECK_VALUE(grad.size(0) == input.size(0), "expected grad_output of ", input.size(0),
                    " channels or panels, but got ", grad.size(0));
  return own->max_pool(x, dy, size, stride);
}

variable_list lanes_max_pool_gradients(const Backward& b) {
  const int64_t size = b.kept[0], stride = b.kept[1], batch = b.kept[2], length = b.kept[3];
  const Tensor& input = b.saved[0];
  if (b.again || !computes_plainly(b.grad, true)) {
    const int64_t channels =
        input.size(0) * (input.scalar_type() == at::kBFloat16 ? kPanelChannels : 1);
    return gradients_by_torch(b, {input}, [&](const variable_list& x) {
      const Tensor signal = CALL(lanes_leave)(x[0], channels, batch, length);
      const int64_t padding = stride == 1 ? size / 2 : 0;
      return CALL(lanes_enter)(at::max_pool1d(signal, size, stride, padding),
                               margin_of(input, length));
    });
  }
  return {CALL(lanes_max_pool_backward)(b.grad, input, size, stride, batch, length)};
}

// The average of each series, (N, C).
Tensor lanes_mean(const Tensor& input, int64_t channels, int64_t batch, int64_t length) {
  const Ordered own(input, batch, length);
  return own->mean(own.checked(input, channels, "input"), channels);
}

variable_list mean_gradients(const Backward& b) {
  const auto [length, margin] = b.numbers<2>();
  const Tensor each = b.grad.div(static_cast<double>(length)).unsqueeze(2);
  return {CALL(lanes_enter)(each.expand({-1, -1, length}), margin)};
}

// Of any contiguous tensor. The same seed drops the same elements.
Tensor lanes_dropout(const Tensor& input, double p, int64_t seed) {
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

variable_list dropout_gradients(const Backward& b) {
  const auto [p, seed] = b.numbers<2>();
  return {CALL(lanes_dropout)(b.grad, std::bit_cast<double>(p), seed)};
}

}  // namespace

}  // namespace sparseconv

TORCH_LIBRARY_FRAGMENT(sparseconv, m) {
  using namespace sparseconv;
  implement<max_pool>(m, "max_pool",
                      [](const Tensor& input, int64_t size, int64_t stride, int64_t padding) {
                        const Tensor output = COMPUTE(max_pool)(input, size, stride, padding);
                        return recorded<max_pool_gradients>(output, {input, output},
                                                            {size, stride, padding}, input);
                      });
  implement<max_pool_backward>(m, "max_pool_backward");
  implement<lanes_max_pool>(
      m, "lanes_max_pool",
      [](const Tensor& input, int64_t size, int64_t stride, int64_t batch, int64_t length) {
        const Tensor output = COMPUTE(lanes_max_pool)(input, size, stride, batch, length);
        return recorded<lanes_max_pool_gradients>(output, {input}, {size, stride, batch, length},
                                                  input);
      });
  implement<lanes_max_pool_backward>(m, "lanes_max_pool_backward");
  implement<lanes_mean>(
      m, "lanes_mean", [](const Tensor& input, int64_t channels, int64_t batch, int64_t length) {
        const Tensor output = COMPUTE(lanes_mean)(input, channels, batch, length);
        return recorded<mean_gradients>(output, {}, {length, margin_of(input, length)}, input);
      });
  implement<lanes_dropout>(m, "lanes_dropout", [](const Tensor& input, double p, int64_t seed) {
    const Tensor output = COMPUTE(lanes_dropout)(input, p, seed);
    return recorded<dropout_gradients>(output, {}, {std::bit_cast<int64_t>(p), seed}, input);
  });
}
