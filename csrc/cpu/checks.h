// What the CPU ops check of their arguments. Every op can be called with anything; after these
// checks no argument can make a kernel touch memory outside its buffers.
#pragma once

#include <ATen/ATen.h>

#include "layout.h"

namespace sparseconv {

using at::Tensor;

struct Geometry {
  int64_t out_channels, row_channels, kernel_size;  // row_channels = C_in / groups
  int64_t stride, left, right, dilation, groups;
  PaddingMode mode;

  int64_t in_channels() const { return row_channels * groups; }
  int64_t reach() const { return dilation * (kernel_size - 1) + 1; }
  int64_t output_length(int64_t input_length) const {
    return (input_length + left + right - reach()) / stride + 1;
  }
};

// All of these throw: ValueError for sizes and contents, TypeError for dtypes and devices.
Geometry check_geometry(at::IntArrayRef shape,
                        int64_t stride,
                        at::IntArrayRef padding,
                        int64_t dilation,
                        int64_t groups,
                        c10::string_view mode);
void check_lengths(const Geometry& g, int64_t length);
void check_signal(const Tensor& x, const char* name);
void check_signal(const Tensor& x, const char* name, int64_t channels);
void check_same_type(const Tensor& a, const Tensor& b, const char* name);
void check_indices(const Tensor& indices, const char* name, int64_t size);
void check_below(const Tensor& indices, const char* name, int64_t limit);
void check_pointers(const Tensor& pointers, const char* name, int64_t rows, int64_t nnz);

// The scratch rows of entries: each must leave space for the piece that begins there.
void check_rows(const Tensor& rows, int64_t nnz, const Layout& layout, int64_t row_channels);

Element element_of(const Tensor& x);
// The element of a signal whose kernels know float32 and float64; `instead` takes any other.
Element fused_element(const Tensor& x, const char* name, const char* instead);
at::ScalarType acc_type(const Tensor& x);
int64_t lanes_of(const Tensor& x);
TensorView view(const Tensor& x);

}  // namespace sparseconv
