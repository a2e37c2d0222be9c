// The CUDA ops: tensors -> checks -> problems -> launches on the current stream.
//
// Contents of index tensors are not checked: that would wait for the GPU. The kernels stay inside
// their buffers whatever they contain (problem.h).

#include <ATen/ATen.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <cstdlib>
#include <limits>

#include "../checks.h"
#include "kernels.h"

namespace sparseconv::cuda {
namespace {

using at::Tensor;

constexpr int64_t kMost = std::numeric_limits<int32_t>::max();

// Sizes that kernels count in 32 bits. Pointers have one more element than there are kernels.
void check_sizes(const Geometry& g, int64_t nnz) {
  TORCH_CHECK_VALUE(g.reach() <= kMost && g.in_channels() <= kMost && nnz <= kMost,
                    "dilation * (kernel_size - 1) + 1, in_channels and nnz must be below 2**31 on ",
                    "CUDA, but got ", g.reach(), ", ", g.in_channels(), " and ", nnz);
}

void set_pattern(Pattern& p, const Tensor& pointers, const Tensor& rows) {
  p.nnz = static_cast<int32_t>(rows.numel());
  p.pointers = pointers.const_data_ptr<int32_t>();
  p.rows = rows.const_data_ptr<int32_t>();
}

int64_t processors() {
  int count = 0;
  C10_CUDA_CHECK(
      cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, c10::cuda::current_device()));
  return count;
}

// The best instance, or the one that the environment names.
Launch launch_for(const Problem& p) {
  const char* name = std::getenv("SPARSECONV_CUDA_KERNEL");
  Variant v;
  if (name == nullptr || *name == '\0') {
    v = choose(p, processors());
  } else {
    v = named(p, name);
    TORCH_CHECK_VALUE(v.outputs > 0,
                      "SPARSECONV_CUDA_KERNEL must be direct, tiled, narrow or wide,", " but got '",
                      name, "'");
    TORCH_CHECK_VALUE(can_run(p, v), "the kernel that SPARSECONV_CUDA_KERNEL names, ", name,
                      ", cannot compute this problem; unset the variable");
  }
  const Launch launch = launch_of(p, v);
  TORCH_CHECK_VALUE(launch.blocks <= kMost, "expected a problem of less than 2**31 blocks of ",
                    "threads, but got one of ", launch.blocks, "; split the batch");
  return launch;
}

void launch(const Correlation& p) {
  const Launch launch = launch_for({p.pattern, p.window, p.in.element, false});
  if (launch.blocks > 0) {
    C10_CUDA_CHECK(launch_correlate(p, launch, c10::cuda::getCurrentCUDAStream()));
  }
}

Tensor fprop(const Tensor& input,
             const Tensor& values,
             const std::optional<Tensor>& bias,
             const Tensor& crow,
             const Tensor& rows,
             at::IntArrayRef geometry,
             bool relu) {
  const Geometry g = check_geometry(geometry);
  check_signal(input, "input", g.in_channels(), at::kCUDA);
  const c10::cuda::CUDAGuard guard(input.device());
  check_lengths(g, input.size(2));
  const int64_t nnz = values.numel();
  check_sizes(g, nnz);
  check_values(values, input);
  check_indices(crow, "crow_indices", g.n_kernels() + 1, input.device());
  check_indices(rows, "rows", nnz, input.device());
  const Tensor weights = values.to(acc_type(input)).contiguous();
  Tensor init;
  if (bias.has_value()) {
    check_vector(*bias, "bias", input, g.out_channels);
    init = bias->to(acc_type(input)).contiguous();
  }
  Correlation p = fprop_problem(g, element_of(input), input.size(0), input.size(2));
  Tensor output = at::empty({input.size(0), g.out_channels, p.out_length}, input.options());
  set_pattern(p.pattern, crow, rows);
  p.in.view = view(input);
  p.weights = weights.const_data_ptr();
  p.init = init.defined() ? init.const_data_ptr() : nullptr;
  p.out = view(output);
  p.relu = relu;
  launch(p);
  return output;
}

Tensor dgrad(const Tensor& grad,
             const Tensor& values,
             const Tensor& pointers,
             const Tensor& rows,
             const Tensor& index,
             at::IntArrayRef geometry,
             int64_t input_length) {
  const Geometry g = check_geometry(geometry);
  check_signal(grad, "grad_output", g.out_channels, at::kCUDA);
  const c10::cuda::CUDAGuard guard(grad.device());
  check_lengths(g, input_length);
  check_gradient(grad, g, grad.size(0), input_length);
  const int64_t nnz = values.numel(), n_kernels = g.n_kernels();
  check_sizes(g, nnz);
  check_values(values, grad);
  check_phases(g);
  check_indices(pointers, "pointers", g.stride * n_kernels + 1, grad.device());
  check_indices(rows, "rows", nnz, grad.device());
  check_indices(index, "index", nnz, grad.device());
  const Tensor weights = values.index_select(0, index).to(acc_type(grad));

  // The gradient of the padding is added to what it was copied from before a half type is rounded.
  const bool folds = g.mode != PaddingMode::zeros && g.left + g.right > 0;
  const Tensor source = folds ? grad.to(acc_type(grad)) : grad;
  const Element element = element_of(source);
  Tensor output = at::empty({grad.size(0), g.in_channels(), input_length}, source.options());
  Tensor fold;
  if (folds) {
    fold = at::empty({grad.size(0), g.in_channels(), g.left + g.right}, source.options());
  }
  for (int64_t phase = 0; phase < g.stride; ++phase) {
    Correlation p = dgrad_problem(g, element, grad.size(0), input_length, phase, folds);
    if (p.window.count > 0) {
      set_pattern(p.pattern, pointers, rows);
      p.pattern.pointers += phase * n_kernels;
      p.in.view = view(source);
      p.weights = weights.const_data_ptr();
      p.out = view(output);
      p.fold = folds ? fold.data_ptr() : nullptr;
      launch(p);
    }
  }
  const int64_t series = grad.size(0) * g.in_channels();
  if (folds && series > 0) {
    const Fold p{
        fold.const_data_ptr(), output.data_ptr(), series, input_length, g.left, g.right, g.mode};
    C10_CUDA_CHECK(launch_fold(p, element, c10::cuda::getCurrentCUDAStream()));
  }
  return output.to(grad.scalar_type());
}

Tensor wgrad(const Tensor& grad,
             const Tensor& input,
             const Tensor& crow,
             const Tensor& rows,
             at::IntArrayRef geometry,
             const std::optional<Tensor>&) {  // batches: the CPU's
  const Geometry g = check_geometry(geometry);
  check_signal(input, "input", g.in_channels(), at::kCUDA);
  check_signal(grad, "grad_output", g.out_channels, at::kCUDA);
  const c10::cuda::CUDAGuard guard(input.device());
  check_same_type(input, grad, "grad_output");
  check_lengths(g, input.size(2));
  check_gradient(grad, g, input.size(0), input.size(2));
  const int64_t nnz = rows.numel();
  check_sizes(g, nnz);
  check_indices(crow, "crow_indices", g.n_kernels() + 1, input.device());
  check_indices(rows, "rows", nnz, input.device());

  const Element element = element_of(input);
  if (nnz == 0 || input.size(0) == 0) {
    return at::zeros({nnz}, input.options());
  }
  WeightGradient p = wgrad_problem(g, element, input.size(0), input.size(2));
  set_pattern(p.pattern, crow, rows);
  p.in.view = view(input);
  p.grad = view(grad);
  const Launch launch = launch_for({p.pattern, p.window, element, true});
  p.chunks = launch.parts;
  Tensor partial = at::empty({p.chunks, nnz}, input.options().dtype(acc_type(input)));
  p.partial = partial.data_ptr();
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
  C10_CUDA_CHECK(launch_wgrad(p, launch, stream));
  if (p.chunks == 1) {
    return partial[0].to(input.scalar_type());
  }
  Tensor result = at::empty({nnz}, input.options());
  C10_CUDA_CHECK(launch_add_chunks(partial.const_data_ptr(), p.chunks, nnz, result.data_ptr(),
                                   element, stream));
  return result;
}

}  // namespace

TORCH_LIBRARY_IMPL(sparseconv, CUDA, m) {
  m.impl("fprop", fprop);
  m.impl("dgrad", dgrad);
  m.impl("wgrad", wgrad);
}

}  // namespace sparseconv::cuda
