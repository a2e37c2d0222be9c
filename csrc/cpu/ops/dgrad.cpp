// The gradient of the input: fprop on the transposed pattern, one phase of the stride at a time.

#include <torch/library.h>

#include <algorithm>
#include <vector>

#include "../../checks.h"
#include "../launch.h"
#include "../layout.h"

namespace sparseconv {
namespace {

// Adds what reached the padding to the samples that it was copied from, in ascending order.
template <typename T>
void add_fold(Tensor& output, const Tensor& fold, const Geometry& g) {
  const int64_t length = output.size(2), width = g.left + g.right;
  T* out = output.data_ptr<T>();
  const T* extra = fold.const_data_ptr<T>();
  parallel_for(output.size(0) * output.size(1), 64, [&](int64_t begin, int64_t end) {
    for (int64_t series = begin; series < end; ++series) {
      for (int64_t i = 0; i < width; ++i) {
        const int64_t position = i < g.left ? i - g.left : length + i - g.left;
        const int64_t source = fold_position(position, length, g.mode);
        out[series * length + source] += extra[series * width + i];
      }
    }
  });
}

// The weights in the order in which the transposed pattern meets them. Reading them through the
// index instead would bring in a cache line for every weight, once per lane group.
Tensor gathered(const Tensor& values, const Tensor& index) {
  Tensor weights = at::empty_like(values);
  const int32_t* from = index.const_data_ptr<int32_t>();
  const auto gather = [&](auto* out, const auto* in) {
    parallel_for(index.numel(), 16 * 1024, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        out[i] = in[from[i]];
      }
    });
  };
  if (values.scalar_type() == at::kDouble) {
    gather(weights.data_ptr<double>(), values.const_data_ptr<double>());
  } else {
    gather(weights.data_ptr<float>(), values.const_data_ptr<float>());
  }
  return weights;
}

// Adds what reaches the replicated samples of one side to the border sample they were copied from.
// A tap at `position` of the kernel meets there the outermost padding - position gradients on the
// left, padding - (span - position) on the right: the same correlation once more, for one output,
// over running sums of the gradients.
void add_edge(Tensor& output, Correlation p, const Geometry& g, int64_t span, bool left) {
  if ((left ? g.left : g.right) == 0) {
    return;
  }
  Tensor edge = at::empty({output.size(0), output.size(1), 1}, output.options());
  p.origin = left ? g.left - 1 : p.in_length - g.right + span;
  p.scan = left ? Scan::prefix : Scan::suffix;
  p.out = view(edge);
  p.out_length = 1;
  p.first = 0;
  p.count = 1;
  run_correlation(p, element_of(output), lanes_of(output), span);
  output.select(2, left ? 0 : output.size(2) - 1).add_(edge.select(2, 0));
}

Tensor dgrad(const Tensor& grad,
             const Tensor& values,
             const Tensor& pointers,
             const Tensor& rows,
             const Tensor& index,
             at::IntArrayRef geometry,
             int64_t input_length) {
  const Geometry g = check_geometry(geometry);
  check_signal(grad, "grad_output", g.out_channels);
  check_lengths(g, input_length);
  check_gradient(grad, g, grad.size(0), input_length);
  check_values(values, grad);
  const int64_t nnz = values.numel();
  const int64_t group_rows = g.out_channels / g.groups;
  const int64_t n_kernels = g.n_kernels();
  check_phases(g);
  check_pointers(pointers, "pointers", g.stride * n_kernels, nnz);
  check_indices(rows, "rows", nnz);
  check_indices(index, "index", nnz);
  check_below(index, "index", nnz);
  const Tensor weights = gathered(values.to(acc_type(grad)).contiguous(), index);

  // Padding other than zeros carries gradient back to the samples it was copied from. What reaches
  // a replicated border is one more output per side (add_edge), where the scratch holds all
  // positions between the taps; else the gradient of the padding is computed and folded. The sums
  // stay in the accumulation type, and as no kernel reads a half type and writes another, such a
  // gradient is widened.
  const bool padded = g.mode != PaddingMode::zeros && g.left + g.right > 0;
  std::vector<int64_t> taps;
  const int64_t span = g.reach() - 1;
  const bool edges = padded && g.mode == PaddingMode::replicate && g.stride == 1 &&
                     std::max(g.left, g.right) <= span &&
                     dgrad_layout(g, 0, &taps).segments.size() == 1;
  const bool folds = padded && !edges;
  const Tensor source = padded ? grad.to(acc_type(grad)) : grad;
  const Element element = element_of(source);
  Tensor output = at::empty({grad.size(0), g.in_channels(), input_length}, source.options());
  Tensor fold;
  if (folds) {
    fold = at::empty({grad.size(0), g.in_channels(), g.left + g.right}, source.options());
  }

  for (int64_t phase = 0; phase < g.stride; ++phase) {
    const Layout layout = dgrad_layout(g, phase, &taps);
    // Padded positions j = stride * u + phase in [low, high).
    const int64_t low = folds ? 0 : g.left;
    const int64_t high = folds ? input_length + g.left + g.right : g.left + input_length;
    const int64_t first = low > phase ? ceil_div(low - phase, g.stride) : 0;
    const int64_t past = high > phase ? ceil_div(high - phase, g.stride) : 0;
    const int32_t* phase_pointers = pointers.const_data_ptr<int32_t>() + phase * n_kernels;
    const int64_t begin = phase_pointers[0], end = phase_pointers[n_kernels];
    check_rows(rows.slice(0, begin, end), end - begin, layout, group_rows);
    Correlation p{};
    std::vector<int32_t> starts;
    p.entries = block_entries(phase_pointers, rows.const_data_ptr<int32_t>(), g.in_channels(),
                              group_rows, g.groups, layout, &starts);
    p.tile = layout.shape();
    p.values = weights.const_data_ptr();
    p.in = view(source);
    p.in_length = grad.size(2);
    p.mode = PaddingMode::zeros;
    p.origin = first;
    p.out = view(output);
    p.out_length = input_length;
    p.first = first * g.stride + phase - g.left;
    p.out_step = g.stride;
    p.fold = folds ? fold.data_ptr() : nullptr;
    p.fold_left = g.left;
    p.fold_right = g.right;
    p.batch = grad.size(0);
    p.count = past - first;
    run_correlation(p, element, lanes_of(grad), layout.span());
    if (edges) {
      add_edge(output, p, g, span, true);
      add_edge(output, p, g, span, false);
    }
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

}  // namespace

TORCH_LIBRARY_IMPL(sparseconv, CPU, m) {
  m.impl("dgrad", dgrad);
}

}  // namespace sparseconv
