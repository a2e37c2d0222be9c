// What the ops check of their arguments: after that no argument can make a CPU kernel touch memory
// outside its buffers. (The contents of index tensors are checked on the CPU only; GPU kernels
// guard themselves.)
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "conv1d.h"

namespace sparseconv {

using at::Tensor;

// All of these throw: ValueError for sizes and contents, TypeError for dtypes and devices.
// [C_out, C_in // groups, K, stride, left, right, dilation, groups, PaddingMode]: the fields of
// Geometry, in their order; then the pattern's block, which only Triton's kernels read.
Geometry check_geometry(at::IntArrayRef numbers);
void check_lengths(const Geometry& g, int64_t length);
void check_memory(const Tensor& x, const char* name);
// (N, C, L), of these channels or of any.
void check_signal(const Tensor& x,
                  const char* name,
                  std::optional<int64_t> channels = {},
                  at::DeviceType device = at::kCPU);
void check_same_type(const Tensor& a, const Tensor& b, const char* name);  // and on one device
void check_vector(const Tensor& vector, const char* name, const Tensor& x, int64_t channels);
void check_gradient(const Tensor& grad, const Geometry& g, int64_t batch, int64_t input_length);
void check_indices(const Tensor& indices,
                   const char* name,
                   int64_t size,
                   at::Device device = at::kCPU);
// CSR: rows + 1 pointers, and of each entry its column below `columns`.
void check_pattern(const Tensor& crow, const Tensor& col, int64_t rows, int64_t columns);

Element element_of(const Tensor& x);
at::ScalarType acc_type(const Tensor& x);
TensorView view(const Tensor& x);  // of a tensor in lanes the data alone

}  // namespace sparseconv
