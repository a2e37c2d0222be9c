// The CUDA ops: tensors -> checks -> problems -> launches on the current stream.
//
// Contents of index tensors are not checked: that would wait for the GPU. The kernels stay inside
// their buffers whatever they contain (problem.h).

#include <ATen/ATen.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <limits>

#include "../checks.h"
#include "kernels.h"

namespace sparseconv::cuda {
namespace {

using at::Tensor;

constexpr int64_t kMost = std::numeric_limits<int32_t>::max();

Geometry check_problem(at::IntArrayRef geometry, const Tensor& x) {
  const Geometry g = check_geometry(geometry);
  TORCH_CHECK_NOT_IMPLEMENTED(
      x.scalar_type() != at::kDouble && g.stride == 1 && g.groups == 1 && g.reach() <= kReach &&
          g.n_kernels() <= kMost / kReach,
      "the CUDA kernels support only stride 1, one group, windows of up to ", kReach,
      " samples and fewer than 2**31 / ", kReach, " kernels, and not float64, but got ",
      x.scalar_type(), ", stride ", g.stride, ", groups ", g.groups,
      ", dilation * (kernel_size - 1) + 1 = ", g.reach(), ", ", g.n_kernels(),
      " kernels; use backend='triton'");
  return g;
}

Pattern check_pattern(const Tensor& rows,
                      const Tensor& slots,
                      int64_t n_rows,
                      int64_t channels,
                      at::Device device) {
  TORCH_CHECK_TYPE(rows.device() == device && rows.layout() == at::kStrided &&
                       rows.scalar_type() == at::kLong && rows.is_contiguous(),
                   "expected rows to be a contiguous int64 tensor on ", device, ", but got ",
                   rows.toString(), " on ", rows.device());
  TORCH_CHECK_VALUE(rows.dim() == 2 && rows.size(0) == n_rows && rows.size(1) == channels + 1,
                    "expected rows of shape (", n_rows, ", ", channels + 1, "), but got ",
                    rows.sizes());
  check_indices(slots, "slots", slots.numel(), device);
  TORCH_CHECK_VALUE(slots.numel() <= n_rows * channels * kReach, "expected slots of at most ",
                    n_rows * channels * kReach, " elements, but got ", slots.numel());
  return {rows.const_data_ptr<int64_t>(), static_cast<int32_t>(n_rows),
          static_cast<int32_t>(channels), static_cast<int32_t>(slots.numel())};
}

cudaStream_t stream() {
  return c10::cuda::getCurrentCUDAStream();
}

// A batch as one series, and how that is cut.
struct Series {
  int32_t batch, period;
  Cut cut;

  Series(const Geometry& g, const Pattern& pattern, int64_t n, int64_t length, bool correlates) {
    const int64_t padded = g.left + length + g.right;
    constexpr int64_t kTile = kLanes * kLarge;
    TORCH_CHECK_VALUE(n == 0 || padded <= (kMost - 4 * kTile) / n,
                      "expected fewer than 2**31 padded samples per channel in a batch, but got ",
                      n, " x ", padded, "; split the batch");
    batch = static_cast<int32_t>(n);
    period = static_cast<int32_t>(padded);
    cut = cut_of(pattern, n * padded, correlates);
    TORCH_CHECK_VALUE(cut.blocks <= kMost, "expected fewer than 2**31 blocks of threads, but ",
                      "this problem needs ", cut.blocks, "; split the batch");
  }
  bool empty() const { return cut.blocks == 0; }

  // Packs a signal into `memory`, and spreads the weights of `p`, if it has any.
  Packed pack(Packing p,
              const Tensor& signal,
              int64_t left,
              PaddingMode mode,
              Tensor& memory) const {
    p.stride = cut.tiles * kLanes * cut.positions + kReach;
    memory = at::empty({signal.size(1), p.stride}, signal.options());
    p.in = view(signal);
    p.out = memory.data_ptr<float>();
    p.channels = signal.size(1);
    p.batch = batch;
    p.length = static_cast<int32_t>(signal.size(2));
    p.period = period;
    p.left = static_cast<int32_t>(left);
    p.mode = mode;
    C10_CUDA_CHECK(launch_pack(p, stream()));
    return {p.out, p.stride};
  }
};

// fprop, or dgrad of an input padded with zeros (ops/cuda.py folds other padding).
Tensor correlate(const Geometry& g,
                 const Tensor& x,
                 const Tensor& values,
                 const std::optional<Tensor>& bias,
                 const Tensor& rows,
                 const Tensor& slots,
                 int64_t input_length,
                 bool backwards,
                 bool relu) {
  const int64_t channels = backwards ? g.in_channels() : g.out_channels;
  Tensor init;
  if (bias.has_value()) {
    check_vector(*bias, "bias", x, channels);
    init = bias->to(at::kFloat).contiguous();
  }
  check_vector(values, "values", x, values.numel());
  check_indices(slots, "rows", values.numel(), x.device());
  const int64_t length = backwards ? input_length : g.output_length(input_length);
  Correlation p{};
  p.pattern = check_pattern(rows, slots, channels, x.size(1), x.device());
  const Series series(g, p.pattern, x.size(0), input_length, true);
  const Tensor signal = x.to(at::kFloat), given = values.to(at::kFloat).contiguous();
  const Tensor output = at::empty({x.size(0), channels, length}, signal.options());
  if (!series.empty()) {
    Packing weighted{};
    weighted.n_slots = p.pattern.n_rows * p.pattern.channels * kReach;
    weighted.nnz = p.pattern.nnz;
    const Tensor weights = at::empty({weighted.n_slots}, given.options());
    weighted.values = given.const_data_ptr<float>();
    weighted.slots = slots.const_data_ptr<int32_t>();
    weighted.weights = weights.data_ptr<float>();
    weighted.backwards = p.backwards = backwards;
    Tensor memory;
    p.in = series.pack(weighted, signal, backwards ? 0 : g.left,
                       backwards ? PaddingMode::zeros : g.mode, memory);
    p.weights = weighted.weights;
    p.bias = init.defined() ? init.const_data_ptr<float>() : nullptr;
    p.out = output.data_ptr<float>();
    p.batch = series.batch;
    p.length = static_cast<int32_t>(length);
    p.period = series.period;
    p.left = backwards ? static_cast<int32_t>(g.left) : 0;
    p.relu = relu;
    C10_CUDA_CHECK(launch_correlate(p, series.cut, stream()));
  }
  return output.to(x.scalar_type());
}

Tensor fprop(const Tensor& input,
             const Tensor& values,
             const std::optional<Tensor>& bias,
             const Tensor& rows,
             const Tensor& slots,
             at::IntArrayRef geometry,
             bool relu) {
  const Geometry g = check_problem(geometry, input);
  check_signal(input, "input", g.in_channels(), at::kCUDA);
  const c10::cuda::CUDAGuard guard(input.device());
  check_lengths(g, input.size(2));
  return correlate(g, input, values, bias, rows, slots, input.size(2), false, relu);
}

Tensor dgrad(const Tensor& grad,
             const Tensor& values,
             const Tensor& rows,
             const Tensor& slots,
             at::IntArrayRef geometry,
             int64_t input_length,
             const std::optional<Tensor>& bias) {
  const Geometry g = check_problem(geometry, grad);
  check_signal(grad, "grad_output", g.out_channels, at::kCUDA);
  const c10::cuda::CUDAGuard guard(grad.device());
  check_lengths(g, input_length);
  check_gradient(grad, g, grad.size(0), input_length);
  return correlate(g, grad, values, bias, rows, slots, input_length, true, false);
}

Tensor wgrad(const Tensor& grad,
             const Tensor& input,
             const Tensor& rows,
             const Tensor& slots,
             at::IntArrayRef geometry) {
  const Geometry g = check_problem(geometry, input);
  check_signal(input, "input", g.in_channels(), at::kCUDA);
  check_signal(grad, "grad_output", g.out_channels, at::kCUDA);
  const c10::cuda::CUDAGuard guard(input.device());
  check_same_type(input, grad, "grad_output");
  check_lengths(g, input.size(2));
  check_gradient(grad, g, input.size(0), input.size(2));
  WeightGradient p{};
  p.pattern = check_pattern(rows, slots, g.out_channels, g.in_channels(), input.device());
  const Series series(g, p.pattern, input.size(0), input.size(2), false);
  const Tensor x = input.to(at::kFloat), dy = grad.to(at::kFloat);
  const int64_t partials = partials_of(series.cut.tiles);
  const Tensor partial = at::empty({partials, slots.numel()}, x.options());
  if (!series.empty()) {
    Tensor inputs, gradients;
    p.in = series.pack({}, x, g.left, g.mode, inputs);
    p.grad = series.pack({}, dy, 0, PaddingMode::zeros, gradients);
    p.partial = partial.data_ptr<float>();
    p.slots = slots.const_data_ptr<int32_t>();
    p.period = series.period;
    p.length = static_cast<int32_t>(grad.size(2));
    C10_CUDA_CHECK(launch_wgrad(p, series.cut, stream()));
  }
  return (partials == 1 ? partial[0] : partial.sum(0)).to(input.scalar_type());
}

}  // namespace

TORCH_LIBRARY_IMPL(sparseconv, CUDA, m) {
  m.impl("cuda_fprop", fprop);
  m.impl("cuda_dgrad", dgrad);
  m.impl("cuda_wgrad", wgrad);
}

}  // namespace sparseconv::cuda
