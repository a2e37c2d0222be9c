#include "checks.h"

#include <algorithm>
#include <limits>

namespace sparseconv {

Geometry check_geometry(at::IntArrayRef numbers) {
  TORCH_CHECK_VALUE(numbers.size() == 11,
                    "expected geometry [C_out, C_in // groups, K, stride, left, right, dilation, "
                    "groups, padding_mode, block's outputs and inputs], but got ",
                    numbers);
  const Geometry g{numbers[0], numbers[1], numbers[2],
                   numbers[3], numbers[4], numbers[5],
                   numbers[6], numbers[7], static_cast<PaddingMode>(numbers[8])};
  // Far beyond any use, and small enough that no sum or product of two overflows.
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  for (const int64_t size :
       {g.out_channels, g.channels_per_group, g.kernel_size, g.stride, g.dilation, g.groups}) {
    TORCH_CHECK_VALUE(size >= 1 && size <= kMost,
                      "shape, stride, dilation and groups must be in [1, 2**31), but got geometry ",
                      numbers);
  }
  TORCH_CHECK_VALUE(std::min(g.left, g.right) >= 0 && std::max(g.left, g.right) <= kMost,
                    "padding must be in [0, 2**31), but got ", g.left, " and ", g.right);
  TORCH_CHECK_VALUE(g.out_channels % g.groups == 0,
                    "out_channels must be divisible by groups, but got ", g.out_channels, " and ",
                    g.groups);
  TORCH_CHECK_VALUE(
      g.out_channels <= kMost / g.channels_per_group && g.n_kernels() <= kMost / g.kernel_size,
      "C_out * C_in // groups * K must be below 2**31, but got geometry ", numbers);
  TORCH_CHECK_VALUE(numbers[8] >= 0 && numbers[8] <= 3,
                    "padding_mode must be 0 (zeros), 1 (replicate), 2 (reflect) or 3 (circular), "
                    "but got ",
                    numbers[8]);
  return g;
}

void check_lengths(const Geometry& g, int64_t length) {
  TORCH_CHECK_VALUE(length >= 1 && length <= (int64_t{1} << 62),
                    "expected an input of at least one sample, but got length ", length);
  const int64_t most = std::max(g.left, g.right);
  const int64_t room = g.mode == PaddingMode::reflect    ? length - 1
                       : g.mode == PaddingMode::circular ? length
                                                         : most;
  TORCH_CHECK_VALUE(most <= room, "Padding size should be at most ", room,
                    " for this padding_mode at input length ", length, ", but got (", g.left, ", ",
                    g.right, ")");
  TORCH_CHECK_VALUE(length + g.left + g.right >= g.reach(),
                    "Calculated padded input size per channel: (", length + g.left + g.right,
                    "). Kernel size: (", g.reach(),
                    "). Kernel size can't be greater than actual input size");
}

// Fake tensors, zeros that are only noted and storages cut short have sizes, and nothing to read.
void check_memory(const Tensor& x, const char* name) {
  const auto readable = [&x] {
    if (!x.has_storage()) {
      return false;
    }
    int64_t reach = x.storage_offset() + 1;
    for (int64_t i = 0; i < x.dim(); ++i) {
      reach += (x.size(i) - 1) * x.stride(i);
    }
    c10::StorageImpl& storage = *x.storage().unsafeGetStorageImpl();
    return storage._mutable_data_ptr_no_checks().get() != nullptr &&  // data() of fake ones throws
           storage.nbytes() >= static_cast<size_t>(reach) * x.element_size();
  };
  TORCH_CHECK_VALUE(x.numel() == 0 || readable(), "expected ", name, " to have memory for its ",
                    x.sizes(), " elements, but it is a fake tensor or its storage was cut short");
}

void check_signal(const Tensor& x,
                  const char* name,
                  std::optional<int64_t> channels,
                  at::DeviceType device) {
  TORCH_CHECK_TYPE(x.device().type() == device && x.layout() == at::kStrided, "expected ", name,
                   " to be a dense ", at::DeviceTypeName(device), " tensor, but got ",
                   x.toString());
  TORCH_CHECK_VALUE(x.dim() == 3 && x.size(1) == channels.value_or(x.size(1)), "expected ", name,
                    " of shape (N, ", channels ? std::to_string(*channels) : "C", ", L), but got ",
                    x.sizes());
  check_memory(x, name);
}

void check_same_type(const Tensor& a, const Tensor& b, const char* name) {
  TORCH_CHECK_TYPE(
      b.device() == a.device() && b.layout() == at::kStrided && b.scalar_type() == a.scalar_type(),
      "expected ", name, " to be a dense tensor of dtype ", a.scalar_type(), " on ", a.device(),
      ", but got ", b.toString(), " on ", b.device());
  check_memory(b, name);
}

void check_vector(const Tensor& vector, const char* name, const Tensor& x, int64_t channels) {
  check_same_type(x, vector, name);
  TORCH_CHECK_VALUE(vector.dim() == 1 && vector.numel() == channels, "expected ", name,
                    " of shape (", channels, ",), but got ", vector.sizes());
}

void check_gradient(const Tensor& grad, const Geometry& g, int64_t batch, int64_t input_length) {
  const int64_t length = g.output_length(input_length);
  TORCH_CHECK_VALUE(grad.size(0) == batch && grad.size(2) == length,
                    "expected grad_output of shape (", batch, ", ", g.out_channels, ", ", length,
                    ") for an input of length ", input_length, ", but got ", grad.sizes());
}

void check_indices(const Tensor& indices, const char* name, int64_t size, at::Device device) {
  TORCH_CHECK_TYPE(indices.device() == device && indices.layout() == at::kStrided &&
                       indices.scalar_type() == at::kInt && indices.is_contiguous(),
                   "expected ", name, " to be a contiguous int32 tensor on ", device, ", but got ",
                   indices.toString(), " on ", indices.device());
  TORCH_CHECK_VALUE(indices.dim() == 1 && indices.numel() == size, "expected ", name, " of shape (",
                    size, ",), but got ", indices.sizes());
  check_memory(indices, name);
}

void check_pattern(const Tensor& crow, const Tensor& col, int64_t rows, int64_t columns) {
  const int64_t nnz = col.numel();
  check_indices(col, "col_indices", nnz);
  const int32_t* taps = col.const_data_ptr<int32_t>();
  // The sign bit of i | (columns - 1 - i) tells i < 0 and i >= columns, on vectors of any CPU.
  const auto last =
      static_cast<uint32_t>(std::min<int64_t>(columns - 1, std::numeric_limits<int32_t>::max()));
  uint32_t signs = 0;
  for (int64_t i = 0; i < nnz; ++i) {
    const auto tap = static_cast<uint32_t>(taps[i]);
    signs |= tap | (last - tap);
  }
  TORCH_CHECK_VALUE(nnz == 0 || (columns >= 1 && signs >> 31 == 0), "expected col_indices in [0, ",
                    columns, "), but at least one is outside");
  check_indices(crow, "crow_indices", rows + 1);
  const int32_t* pointers = crow.const_data_ptr<int32_t>();
  bool sorted = pointers[0] == 0 && pointers[rows] == nnz;
  for (int64_t i = 0; i < rows; ++i) {
    sorted &= pointers[i] <= pointers[i + 1];
  }
  TORCH_CHECK_VALUE(sorted,
                    "expected crow_indices to start at 0, never decrease and end at nnz = ", nnz,
                    ", but they do not");
}

Element element_of(const Tensor& x) {
  switch (x.scalar_type()) {
    case at::kFloat:
      return Element::f32;
    case at::kDouble:
      return Element::f64;
    case at::kBFloat16:
      return Element::bf16;
    case at::kHalf:
      return Element::f16;
    default:
      TORCH_CHECK_TYPE(false, "expected float32, float64, bfloat16 or float16, but got ",
                       x.scalar_type());
  }
}

at::ScalarType acc_type(const Tensor& x) {
  return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

TensorView view(const Tensor& x) {
  void* data = const_cast<void*>(x.const_data_ptr());
  return x.dim() == 3 ? TensorView{data, {x.stride(0), x.stride(1), x.stride(2)}}
                      : TensorView{data, {}};
}

}  // namespace sparseconv
