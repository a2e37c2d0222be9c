// What one launch computes, and where its data is: plain C++ without torch, shared by kernels,
// launchers and tests.
//
// A pattern's `rows` say where an active weight reads: input positions from the beginning of the
// window that one output sees. fprop: tap * dilation. dgrad, phase by phase of the stride: the
// distance of its gradient from the first one of the window, span - (tap * dilation - phase) /
// stride.
#pragma once

#include "../conv1d.h"

namespace sparseconv::cuda {

// Row r owns the entries pointers[r * channels_per_group + c] .. [r * channels_per_group + c + 1)
// of each channel c of its group. Kernels keep e in [0, nnz) and rows in [0, span], so that a wrong
// pattern gives wrong numbers but touches no memory outside the buffers: checking it would need a
// synchronisation.
struct Pattern {
  const int32_t* pointers;
  const int32_t* rows;
  int32_t nnz;
  int32_t n_rows;
  int32_t channels_per_group;
  int32_t groups;
};

struct Signal {
  TensorView view;
  Element element;
  int64_t length;
  PaddingMode mode;
};

// Output i of a series reads the input positions origin + i * step + row, row in [0, span].
struct Window {
  int64_t origin;
  int64_t step;
  int64_t span;
  int64_t count;  // outputs per series
  int64_t batch;

  SPARSECONV_HD int64_t last() const { return origin + (count - 1) * step + span; }
};

// out[n, r, first + i * out_step] = init[r] + sum over the entries e of row r:
//                                   weights[e] * in[n, channel(e), origin + i * step + rows[e]]
struct Correlation {
  Pattern pattern;
  Window window;
  Signal in;
  const void* weights;  // accumulation type
  const void* init;     // accumulation type, (n_rows,) or null for zeros
  TensorView out;       // elements as those of `in`
  int64_t out_length;
  int64_t first;
  int64_t out_step;
  // Outputs outside [0, out_length) go here: (batch, n_rows, fold_left + fold_right), contiguous.
  void* fold;
  int64_t fold_left;
  int64_t fold_right;
  bool relu;
};

// out[e] = sum over n, i: grad[n, r(e), i] * in[n, channel(e), origin + i * step + rows[e]]
struct WeightGradient {
  Pattern pattern;
  Window window;
  Signal in;
  TensorView grad;  // elements as those of `in`
  void* partial;    // accumulation type, (chunks, nnz)
  int64_t chunks;
};

// Adds the gradients of the padding to the samples that it was copied from: out is contiguous.
struct Fold {
  const void* fold;  // (series, left + right)
  void* out;         // (series, length)
  int64_t series, length, left, right;
  PaddingMode mode;
};

// The three problems without pointers and strides.
inline Correlation fprop_problem(const Geometry& g,
                                 Element element,
                                 int64_t batch,
                                 int64_t length) {
  Correlation p{};
  p.pattern.n_rows = static_cast<int32_t>(g.out_channels);
  p.pattern.channels_per_group = static_cast<int32_t>(g.channels_per_group);
  p.pattern.groups = static_cast<int32_t>(g.groups);
  p.window = {-g.left, g.stride, g.reach() - 1, g.output_length(length), batch};
  p.in.element = element;
  p.in.length = length;
  p.in.mode = g.mode;
  p.out_length = p.window.count;
  p.out_step = 1;
  return p;
}

// Output u of a phase is the gradient of padded position u * stride + phase, and sums over the taps
// that reach this phase. Its pointers begin at phase * n_kernels. `folds`: the gradient of the
// padding is computed too. The count may be 0: then there is nothing to launch.
inline Correlation dgrad_problem(const Geometry& g,
                                 Element element,
                                 int64_t batch,
                                 int64_t input_length,
                                 int64_t phase,
                                 bool folds) {
  const auto first_at_or_after = [&](int64_t position) {
    return position > phase ? ceil_div(position - phase, g.stride) : 0;
  };
  const int64_t low = first_at_or_after(folds ? 0 : g.left);
  const int64_t high = first_at_or_after(g.left + input_length + (folds ? g.right : 0));
  const int64_t reach = g.reach() - 1;
  const int64_t span = reach < phase ? 0 : (reach - phase) / g.stride;
  Correlation p{};
  p.pattern.n_rows = static_cast<int32_t>(g.in_channels());
  p.pattern.channels_per_group = static_cast<int32_t>(g.out_channels / g.groups);
  p.pattern.groups = static_cast<int32_t>(g.groups);
  p.window = {low - span, 1, span, high - low, batch};
  p.in.element = element;
  p.in.length = g.output_length(input_length);
  p.in.mode = PaddingMode::zeros;
  p.out_length = input_length;
  p.first = low * g.stride + phase - g.left;
  p.out_step = g.stride;
  p.fold_left = folds ? g.left : 0;
  p.fold_right = folds ? g.right : 0;
  return p;
}

inline WeightGradient wgrad_problem(const Geometry& g,
                                    Element element,
                                    int64_t batch,
                                    int64_t length) {
  const Correlation forward = fprop_problem(g, element, batch, length);
  WeightGradient p{};
  p.pattern = forward.pattern;
  p.window = forward.window;
  p.in = forward.in;
  return p;
}

// Positions of the padding whose samples were copied from position `at`: [begin, end) on one side.
struct Copies {
  int64_t begin, end;
};
SPARSECONV_HD inline Copies copies_of(int64_t at, const Fold& p, bool left) {
  const int64_t edge = left ? 0 : p.length - 1;
  if (p.mode == PaddingMode::replicate) {
    if (at != edge) {
      return {0, 0};
    }
    return left ? Copies{-p.left, 0} : Copies{p.length, p.length + p.right};
  }
  const int64_t copy = p.mode == PaddingMode::reflect ? 2 * edge - at
                       : left                         ? at - p.length
                                                      : at + p.length;
  const bool inside =
      left ? copy >= -p.left && copy < 0 : copy >= p.length && copy < p.length + p.right;
  return inside ? Copies{copy, copy + 1} : Copies{0, 0};
}

}  // namespace sparseconv::cuda
