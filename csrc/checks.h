// What the ops check of their arguments: after that no argument can make a CPU kernel touch memory
// outside its buffers. (The contents of index tensors are checked on the CPU only; GPU kernels
// guard themselves.)
#pragma once

#include <ATen/core/Tensor.h>

#include "conv1d.h"

namespace sparseconv {

using at::Tensor;

// All of these throw: ValueError for sizes and contents, TypeError for dtypes and devices.
// [C_out, C_in // groups, K, stride, left, right, dilation, groups, PaddingMode]: the fields of
// Geometry, in their order; then the pattern's block, which only Triton's kernels read.
Geometry check_geometry(at::IntArrayRef numbers);
void check_lengths(const Geometry& g, int64_t length);
void check_memory(const Tensor& x, const char* name);
void check_signal(const Tensor& x, const char* name, at::DeviceType device = at::kCPU);
void check_signal(const Tensor& x,
                  const char* name,
                  int64_t channels,
                  at::DeviceType device = at::kCPU);
void check_same_type(const Tensor& a, const Tensor& b, const char* name);  // and on one device
void check_vector(const Tensor& vector, const char* name, const Tensor& x, int64_t channels);
void check_gradient(const Tensor& grad, const Geometry& g, int64_t batch, int64_t input_length);
void check_indices(const Tensor& indices,
                   const char* name,
                   int64_t size,
                   at::Device device = at::kCPU);
void check_phases(const Geometry& g);  // dgrad has pointers for each phase of the stride
void check_below(const Tensor& indices, const char* name, int64_t limit);
void check_pointers(const Tensor& pointers, const char* name, int64_t rows, int64_t nnz);

// Whether `check`, a call of these, refuses nothing; if it does, Python raises the error.
template <typename Check>
bool fits(const Check& check) {
  try {
    check();
    return true;
  } catch (const c10::Error&) {
    return false;
  }
}

Element element_of(const Tensor& x);
at::ScalarType acc_type(const Tensor& x);
TensorView view(const Tensor& x);

}  // namespace sparseconv
