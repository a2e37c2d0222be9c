// The CPU ops: tensors -> checks -> plain structs -> threads -> kernel table.
//
// Every op can be called with anything, so each checks all that the kernels rely on: after these
// checks no argument can make them touch memory outside their buffers.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <array>
#include <cstdlib>
#include <limits>
#include <memory>
#include <tuple>

#include "dispatch.h"
#include "kernels.h"
#include "layout.h"

namespace sparseconv {
namespace {

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

PaddingMode parse_mode(c10::string_view mode) {
  if (mode == "zeros") {
    return PaddingMode::zeros;
  }
  if (mode == "replicate") {
    return PaddingMode::replicate;
  }
  if (mode == "reflect") {
    return PaddingMode::reflect;
  }
  TORCH_CHECK_VALUE(mode == "circular",
                    "padding_mode must be zeros, replicate, reflect or circular, but got ", mode);
  return PaddingMode::circular;
}

Geometry check_geometry(at::IntArrayRef shape,
                        int64_t stride,
                        at::IntArrayRef padding,
                        int64_t dilation,
                        int64_t groups,
                        c10::string_view mode) {
  TORCH_CHECK_VALUE(shape.size() == 3 && padding.size() == 2,
                    "expected shape (C_out, C_in // groups, K) and padding (left, right), but got ",
                    shape, " and ", padding);
  // Far beyond any use, and small enough that no sum or product of two overflows.
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  for (const int64_t size : {shape[0], shape[1], shape[2], stride, dilation, groups}) {
    TORCH_CHECK_VALUE(size >= 1 && size <= kMost,
                      "shape, stride, dilation and groups must lie in [1, 2**31), but got ", shape,
                      ", ", stride, ", ", dilation, ", ", groups);
  }
  TORCH_CHECK_VALUE(
      padding[0] >= 0 && padding[0] <= kMost && padding[1] >= 0 && padding[1] <= kMost,
      "padding must lie in [0, 2**31), but got ", padding);
  TORCH_CHECK_VALUE(shape[0] % groups == 0, "out_channels must be divisible by groups, but got ",
                    shape[0], " and ", groups);
  TORCH_CHECK_VALUE(shape[0] <= kMost / shape[1] && shape[0] * shape[1] <= kMost / shape[2],
                    "C_out * C_in // groups * K must be below 2**31, but got ", shape);
  return {shape[0],   shape[1], shape[2], stride,          padding[0],
          padding[1], dilation, groups,   parse_mode(mode)};
}

void check_lengths(const Geometry& g, int64_t length) {
  const int64_t most = std::max(g.left, g.right);
  const int64_t room = g.mode == PaddingMode::reflect     ? length - 1
                       : g.mode == PaddingMode::circular  ? length
                       : g.mode == PaddingMode::replicate ? (length > 0 ? most : 0)
                                                          : most;
  TORCH_CHECK_VALUE(most <= room, "Padding size should be at most ", std::max<int64_t>(room, 0),
                    " for this padding_mode at input length ", length, ", but got (", g.left, ", ",
                    g.right, ")");
  TORCH_CHECK_VALUE(length >= 0 && length + g.left + g.right >= g.reach(),
                    "Calculated padded input size per channel: (", length + g.left + g.right,
                    "). Kernel size: (", g.reach(),
                    "). Kernel size can't be greater than actual input size");
}

void check_signal(const Tensor& x, const char* name, int64_t channels) {
  TORCH_CHECK_TYPE(x.device().is_cpu() && x.layout() == at::kStrided, "expected ", name,
                   " to be a dense CPU tensor, but got ", x.toString());
  TORCH_CHECK_VALUE(x.dim() == 3 && x.size(1) == channels, "expected ", name, " of shape (N, ",
                    channels, ", L), but got ", x.sizes());
}

void check_same_type(const Tensor& a, const Tensor& b, const char* name) {
  TORCH_CHECK_TYPE(
      b.device().is_cpu() && b.layout() == at::kStrided && b.scalar_type() == a.scalar_type(),
      "expected ", name, " to be a dense CPU tensor of dtype ", a.scalar_type(), ", but got ",
      b.toString());
}

void check_indices(const Tensor& indices, const char* name, int64_t size) {
  TORCH_CHECK_TYPE(indices.device().is_cpu() && indices.layout() == at::kStrided &&
                       indices.scalar_type() == at::kInt && indices.is_contiguous(),
                   "expected ", name, " to be a contiguous int32 CPU tensor, but got ",
                   indices.toString());
  TORCH_CHECK_VALUE(indices.dim() == 1 && indices.numel() == size, "expected ", name, " of shape (",
                    size, ",), but got ", indices.sizes());
}

void check_below(const Tensor& indices, const char* name, int64_t limit) {
  const int32_t* data = indices.const_data_ptr<int32_t>();
  uint32_t most = 0;  // a negative index is a huge one
  for (int64_t i = 0; i < indices.numel(); ++i) {
    most = std::max(most, static_cast<uint32_t>(data[i]));
  }
  TORCH_CHECK_VALUE(indices.numel() == 0 || static_cast<int64_t>(most) < limit, "expected ", name,
                    " in [0, ", limit, "), but found one that is not");
}

void check_pointers(const Tensor& pointers, const char* name, int64_t rows, int64_t nnz) {
  check_indices(pointers, name, rows + 1);
  const int32_t* data = pointers.const_data_ptr<int32_t>();
  bool sorted = data[0] == 0 && data[rows] == nnz;
  for (int64_t i = 0; i < rows; ++i) {
    sorted &= data[i] <= data[i + 1];
  }
  TORCH_CHECK_VALUE(sorted, "expected ", name, " to rise from 0 to nnz = ", nnz,
                    " without falling, but it does not");
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

int64_t lanes_of(const Tensor& x) {
  return kRowBytes / static_cast<int64_t>(at::elementSize(acc_type(x)));
}

TensorView view(const Tensor& x) {
  return {const_cast<void*>(x.const_data_ptr()), {x.stride(0), x.stride(1), x.stride(2)}};
}

const KernelTable& table() {
  try {
    return kernels();
  } catch (const std::invalid_argument& error) {
    TORCH_CHECK_VALUE(false, error.what());
  }
}

// Memory that a thread keeps from call to call: half a megabyte would otherwise be mapped and
// faulted in anew each time.
void* thread_scratch(int64_t bytes) {
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  thread_local std::unique_ptr<void, Free> memory;
  thread_local int64_t size = 0;
  if (size < bytes) {
    memory.reset();
    size = 0;
    const int64_t rounded = ceil_div(bytes, kRowBytes) * kRowBytes;
    memory.reset(std::aligned_alloc(kRowBytes, rounded));
    TORCH_CHECK(memory != nullptr, "could not allocate ", rounded, " bytes of scratch memory");
    size = rounded;
  }
  return memory.get();
}

// A share below this many row operations (some 10 us) is not worth waking a thread for.
constexpr int64_t kGrain = 64 * 1024;

template <typename Problem>
void run(const Problem& problem,
         int64_t row_operations,
         void (*kernel)(const Problem&, int64_t, int64_t, void*)) {
  const int64_t parts = std::clamp<int64_t>(row_operations / kGrain, 1, at::get_num_threads());
  const int64_t bytes = scratch_bytes(problem);
  at::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      kernel(problem, part, parts, thread_scratch(bytes));
    }
  });
}

void run_correlation(Correlation& p, Element element, int64_t lanes, int64_t span) {
  if (p.batch == 0 || p.count <= 0) {
    return;
  }
  p.piece = correlate_piece(p.batch, p.count, lanes, span);
  const Entries& e = p.entries;
  const int64_t nnz = e.pointers[e.n_rows * e.row_channels] - e.pointers[0];
  const int64_t outputs = ceil_div(p.batch * p.count, lanes);
  run(p, outputs * (nnz + 4 * e.n_rows), table().correlate[static_cast<int>(element)]);
}

Tensor plan_fprop(const Tensor& crow,
                  const Tensor& col,
                  at::IntArrayRef shape,
                  int64_t stride,
                  int64_t dilation) {
  const Geometry g = check_geometry(shape, stride, {0, 0}, dilation, 1, "zeros");
  const int64_t nnz = col.numel();
  check_indices(col, "col_indices", nnz);
  check_below(col, "col_indices", g.kernel_size);
  const int64_t n_kernels = g.out_channels * g.row_channels;
  check_pointers(crow, "crow_indices", n_kernels, nnz);
  const Layout layout = fprop_layout(g.kernel_size, stride, dilation);
  Tensor rows = at::empty({nnz}, col.options());
  const int32_t* pointers = crow.const_data_ptr<int32_t>();
  const int32_t* taps = col.const_data_ptr<int32_t>();
  int32_t* out = rows.data_ptr<int32_t>();
  for (int64_t kernel = 0; kernel < n_kernels; ++kernel) {
    const int64_t channel = kernel % g.row_channels;
    const int64_t base = channel % layout.block_channels * layout.channel_rows;
    for (int64_t e = pointers[kernel]; e < pointers[kernel + 1]; ++e) {
      out[e] = static_cast<int32_t>(base + layout.tap_rows[taps[e]]);
    }
  }
  return rows;
}

std::tuple<Tensor, Tensor, Tensor> plan_dgrad(const Tensor& crow,
                                              const Tensor& col,
                                              at::IntArrayRef shape,
                                              int64_t stride,
                                              int64_t dilation,
                                              int64_t groups) {
  const Geometry g = check_geometry(shape, stride, {0, 0}, dilation, groups, "zeros");
  const int64_t nnz = col.numel();
  check_indices(col, "col_indices", nnz);
  check_below(col, "col_indices", g.kernel_size);
  check_pointers(crow, "crow_indices", g.out_channels * g.row_channels, nnz);
  const int64_t group_rows = g.out_channels / groups;
  const int64_t n_kernels = g.in_channels() * group_rows;
  TORCH_CHECK_VALUE(stride <= std::numeric_limits<int32_t>::max() / n_kernels,
                    "stride x kernels must be below 2**31, but got ", stride, " x ", n_kernels);
  Tensor pointers = at::empty({stride * n_kernels + 1}, col.options());
  Tensor rows = at::empty({nnz}, col.options());
  Tensor index = at::empty({nnz}, col.options());
  const int32_t* from = crow.const_data_ptr<int32_t>();
  const int32_t* taps = col.const_data_ptr<int32_t>();
  int32_t* to = pointers.data_ptr<int32_t>();
  int32_t* row = rows.data_ptr<int32_t>();
  int32_t* at = index.data_ptr<int32_t>();
  int32_t entry = 0;
  *to++ = 0;
  std::vector<int64_t> phase_taps;
  for (int64_t phase = 0; phase < stride; ++phase) {
    const Layout layout = dgrad_layout(g.kernel_size, stride, dilation, phase, &phase_taps);
    std::vector<int32_t> tap_rows(g.kernel_size, -1);
    for (size_t i = 0; i < phase_taps.size(); ++i) {
      tap_rows[phase_taps[i]] = layout.tap_rows[i];
    }
    for (int64_t channel = 0; channel < g.in_channels(); ++channel) {
      const int64_t group = channel / g.row_channels;
      for (int64_t o = 0; o < group_rows; ++o) {
        const int64_t kernel = (group * group_rows + o) * g.row_channels + channel % g.row_channels;
        const int64_t base = o % layout.block_channels * layout.channel_rows;
        for (int32_t e = from[kernel]; e < from[kernel + 1]; ++e) {
          if (tap_rows[taps[e]] >= 0) {
            row[entry] = static_cast<int32_t>(base + tap_rows[taps[e]]);
            at[entry++] = e;
          }
        }
        *to++ = entry;
      }
    }
  }
  return {pointers, rows, index};
}

int64_t span_of(const Layout& layout) {
  return layout.channel_rows - kPieceMax * static_cast<int64_t>(layout.segments.size());
}

// A row must leave space for the piece that begins there.
void check_rows(const Tensor& rows, int64_t nnz, const Layout& layout) {
  check_indices(rows, "rows", nnz);
  check_below(rows, "rows", layout.block_channels * layout.channel_rows - kPieceMax + 1);
}

Tensor fprop(const Tensor& input,
             const Tensor& values,
             const std::optional<Tensor>& bias,
             const Tensor& crow,
             const Tensor& rows,
             at::IntArrayRef shape,
             int64_t stride,
             at::IntArrayRef padding,
             int64_t dilation,
             int64_t groups,
             c10::string_view mode) {
  const Geometry g = check_geometry(shape, stride, padding, dilation, groups, mode);
  check_signal(input, "input", g.in_channels());
  const int64_t length = input.size(2);
  check_lengths(g, length);
  const Element element = element_of(input);
  check_same_type(input, values, "values");
  const int64_t nnz = values.numel();
  TORCH_CHECK_VALUE(values.dim() == 1, "expected values of shape (nnz,), but got ", values.sizes());
  check_pointers(crow, "crow_indices", g.out_channels * g.row_channels, nnz);
  const Layout layout = fprop_layout(g.kernel_size, stride, dilation);
  check_rows(rows, nnz, layout);
  const Tensor weights = values.to(acc_type(input)).contiguous();
  Tensor init;
  if (bias.has_value()) {
    check_same_type(input, *bias, "bias");
    TORCH_CHECK_VALUE(bias->dim() == 1 && bias->numel() == g.out_channels,
                      "expected bias of shape (", g.out_channels, ",), but got ", bias->sizes());
    init = bias->to(acc_type(input)).contiguous();
  }

  const int64_t out_length = g.output_length(length);
  Tensor output = at::empty({input.size(0), g.out_channels, out_length}, input.options());
  Correlation p{};
  p.entries = {crow.const_data_ptr<int32_t>(),
               rows.const_data_ptr<int32_t>(),
               nullptr,
               g.row_channels,
               g.out_channels,
               groups};
  p.tile = layout.shape();
  p.values = weights.const_data_ptr();
  p.init = init.defined() ? init.const_data_ptr() : nullptr;
  p.in = view(input);
  p.in_length = length;
  p.mode = g.mode;
  p.origin = -g.left;
  p.out = view(output);
  p.out_length = out_length;
  p.out_step = 1;
  p.batch = input.size(0);
  p.count = out_length;
  run_correlation(p, element, lanes_of(input), span_of(layout));
  return output;
}

// Adds what reached the padding to the samples that it was copied from, in ascending order.
template <typename T>
void add_fold(Tensor& output, const Tensor& fold, const Geometry& g) {
  const int64_t length = output.size(2), width = g.left + g.right;
  T* out = output.data_ptr<T>();
  const T* extra = fold.const_data_ptr<T>();
  at::parallel_for(0, output.size(0) * output.size(1), 64, [&](int64_t begin, int64_t end) {
    for (int64_t series = begin; series < end; ++series) {
      for (int64_t i = 0; i < width; ++i) {
        const int64_t position = i < g.left ? i - g.left : length + i - g.left;
        int64_t source = position < 0 ? 0 : length - 1;  // replicate
        if (g.mode == PaddingMode::reflect) {
          source = position < 0 ? -position : 2 * length - 2 - position;
        } else if (g.mode == PaddingMode::circular) {
          source = position < 0 ? position + length : position - length;
        }
        out[series * length + source] += extra[series * width + i];
      }
    }
  });
}

Tensor dgrad(const Tensor& grad,
             const Tensor& values,
             const Tensor& pointers,
             const Tensor& rows,
             const Tensor& index,
             at::IntArrayRef shape,
             int64_t input_length,
             int64_t stride,
             at::IntArrayRef padding,
             int64_t dilation,
             int64_t groups,
             c10::string_view mode) {
  const Geometry g = check_geometry(shape, stride, padding, dilation, groups, mode);
  check_signal(grad, "grad_output", g.out_channels);
  check_lengths(g, input_length);
  TORCH_CHECK_VALUE(grad.size(2) == g.output_length(input_length),
                    "expected grad_output of length ", g.output_length(input_length),
                    " for input_length ", input_length, ", but got ", grad.size(2));
  const Element element = element_of(grad);
  check_same_type(grad, values, "values");
  const int64_t nnz = values.numel();
  TORCH_CHECK_VALUE(values.dim() == 1, "expected values of shape (nnz,), but got ", values.sizes());
  const int64_t group_rows = g.out_channels / groups;
  const int64_t n_kernels = g.in_channels() * group_rows;
  TORCH_CHECK_VALUE(stride <= std::numeric_limits<int32_t>::max() / n_kernels,
                    "stride x kernels must be below 2**31, but got ", stride, " x ", n_kernels);
  check_pointers(pointers, "pointers", stride * n_kernels, nnz);
  check_indices(rows, "rows", nnz);
  check_indices(index, "index", nnz);
  check_below(index, "index", nnz);
  const Tensor weights = values.to(acc_type(grad)).contiguous();

  // Padding other than zeros carries gradient back to the samples it was copied from.
  const bool folds = g.mode != PaddingMode::zeros && g.left + g.right > 0;
  const auto options = folds ? grad.options().dtype(acc_type(grad)) : grad.options();
  Tensor output = at::empty({grad.size(0), g.in_channels(), input_length}, options);
  Tensor fold;
  if (folds) {
    fold = at::empty({grad.size(0), g.in_channels(), g.left + g.right}, options);
  }
  // Where the dtype of grad is a half type and the padding folds, the sums are kept in float32;
  // the kernel that reads half and writes float does not exist, so the gradient is widened.
  const Tensor source = folds ? grad.to(acc_type(grad)) : grad;

  std::vector<int64_t> taps;
  for (int64_t phase = 0; phase < stride; ++phase) {
    const Layout layout = dgrad_layout(g.kernel_size, stride, dilation, phase, &taps);
    // Padded positions j = stride * u + phase that lie in [low, high).
    const int64_t low = folds ? 0 : g.left;
    const int64_t high = folds ? input_length + g.left + g.right : g.left + input_length;
    const int64_t first = low > phase ? ceil_div(low - phase, stride) : 0;
    const int64_t past = high > phase ? ceil_div(high - phase, stride) : 0;
    const int32_t* phase_pointers = pointers.const_data_ptr<int32_t>() + phase * n_kernels;
    const int64_t begin = phase_pointers[0], end = phase_pointers[n_kernels];
    check_below(rows.slice(0, begin, end), "rows",
                layout.block_channels * layout.channel_rows - kPieceMax + 1);
    Correlation p{};
    p.entries = {phase_pointers,
                 rows.const_data_ptr<int32_t>(),
                 index.const_data_ptr<int32_t>(),
                 group_rows,
                 g.in_channels(),
                 groups};
    p.tile = layout.shape();
    p.values = weights.const_data_ptr();
    p.in = view(source);
    p.in_length = grad.size(2);
    p.mode = PaddingMode::zeros;
    p.origin = first;
    p.out = view(output);
    p.out_length = input_length;
    p.first = first * stride + phase - g.left;
    p.out_step = stride;
    p.fold = folds ? fold.data_ptr() : nullptr;
    p.fold_left = g.left;
    p.fold_right = g.right;
    p.batch = grad.size(0);
    p.count = past - first;
    run_correlation(p, folds ? element_of(source) : element, lanes_of(grad), span_of(layout));
  }
  if (folds) {
    if (output.scalar_type() == at::kDouble) {
      add_fold<double>(output, fold, g);
    } else {
      add_fold<float>(output, fold, g);
    }
  }
  return output.to(grad.scalar_type());
}

// The lane groups are cut into at most this many fixed runs, so that many threads need not all
// pack the same inputs. By shape alone: the sums must not depend on the number of threads.
constexpr int64_t kSplitsMax = 8;
constexpr int64_t kGroupsPerSplit = 4;

Tensor wgrad(const Tensor& grad,
             const Tensor& input,
             const Tensor& crow,
             const Tensor& rows,
             at::IntArrayRef shape,
             int64_t stride,
             at::IntArrayRef padding,
             int64_t dilation,
             int64_t groups,
             c10::string_view mode) {
  const Geometry g = check_geometry(shape, stride, padding, dilation, groups, mode);
  check_signal(input, "input", g.in_channels());
  check_signal(grad, "grad_output", g.out_channels);
  check_same_type(input, grad, "grad_output");
  const int64_t length = input.size(2);
  check_lengths(g, length);
  const int64_t out_length = g.output_length(length);
  TORCH_CHECK_VALUE(grad.size(0) == input.size(0) && grad.size(2) == out_length,
                    "expected grad_output of shape (", input.size(0), ", ", g.out_channels, ", ",
                    out_length, "), but got ", grad.sizes());
  const Element element = element_of(input);
  const int64_t nnz = rows.numel();
  check_pointers(crow, "crow_indices", g.out_channels * g.row_channels, nnz);
  const Layout layout = fprop_layout(g.kernel_size, stride, dilation);
  check_rows(rows, nnz, layout);

  const int64_t lanes = lanes_of(input);
  const WgradPiece cut = wgrad_piece(input.size(0), out_length, lanes, span_of(layout));
  const int64_t lane_groups = ceil_div(input.size(0) * ceil_div(out_length, cut.piece), lanes);
  const int64_t splits = std::clamp<int64_t>(lane_groups / kGroupsPerSplit, 1, kSplitsMax);
  Tensor partial = at::zeros({splits, nnz}, input.options().dtype(acc_type(input)));
  if (input.size(0) > 0 && nnz > 0) {
    WeightGradient p{};
    p.entries = {crow.const_data_ptr<int32_t>(),
                 rows.const_data_ptr<int32_t>(),
                 nullptr,
                 g.row_channels,
                 g.out_channels,
                 groups};
    p.tile = layout.shape();
    p.grad = view(grad);
    p.in = view(input);
    p.in_length = length;
    p.mode = g.mode;
    p.origin = -g.left;
    p.partial = partial.data_ptr();
    p.nnz = nnz;
    p.splits = splits;
    p.batch = input.size(0);
    p.count = out_length;
    p.piece = cut.piece;
    p.tile_length = cut.tile_length;
    run(p, lane_groups * cut.piece * nnz, table().wgrad[static_cast<int>(element)]);
  }
  Tensor result = partial[0];
  for (int64_t split = 1; split < splits; ++split) {
    result.add_(partial[split]);
  }
  return result.to(input.scalar_type());
}

}  // namespace

TORCH_LIBRARY_IMPL(sparseconv, CPU, m) {
  m.impl("plan_fprop", plan_fprop);
  m.impl("plan_dgrad", plan_dgrad);
  m.impl("fprop", fprop);
  m.impl("dgrad", dgrad);
  m.impl("wgrad", wgrad);
}

}  // namespace sparseconv
