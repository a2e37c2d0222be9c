// The gradient of the active weights.

#include <torch/library.h>

#include <algorithm>
#include <vector>

#include "../../checks.h"
#include "../launch.h"
#include "../layout.h"

namespace sparseconv {
namespace {

constexpr int64_t kPart = 32 * 1024;  // weights; fewer are not worth waking a thread for

// torch's own zeros and sums would wait for ever in a forked child: see usable_threads().
template <typename T>
void clear(T* partial, int64_t numel) {
  parallel_for(numel, kPart, [&](int64_t begin, int64_t end) {
    std::fill(partial + begin, partial + end, T(0));
  });
}

// Adds the other splits to the first one, in their order.
template <typename T>
void add_up(T* partial, int64_t splits, int64_t nnz) {
  parallel_for(nnz, kPart, [&](int64_t begin, int64_t end) {
    for (int64_t split = 1; split < splits; ++split) {
      for (int64_t i = begin; i < end; ++i) {
        partial[i] += partial[split * nnz + i];
      }
    }
  });
}

Tensor wgrad(const Tensor& grad,
             const Tensor& input,
             const Tensor& crow,
             const Tensor& rows,
             at::IntArrayRef geometry) {
  const Geometry g = check_geometry(geometry);
  check_signal(input, "input", g.in_channels());
  check_signal(grad, "grad_output", g.out_channels);
  check_same_type(input, grad, "grad_output");
  const int64_t length = input.size(2);
  check_lengths(g, length);
  check_gradient(grad, g, input.size(0), length);
  const int64_t out_length = g.output_length(length);
  const Element element = element_of(input);
  const int64_t nnz = rows.numel();
  check_pointers(crow, "crow_indices", g.n_kernels(), nnz);
  const Layout layout = fprop_layout(g);
  check_rows(rows, nnz, layout, g.channels_per_group);

  const int64_t lanes = lanes_of(input);
  const WgradPiece piece = wgrad_piece(input.size(0), out_length, lanes, layout.span());
  const int64_t lane_groups = ceil_div(input.size(0) * ceil_div(out_length, piece.length), lanes);
  const int64_t splits = wgrad_splits(lane_groups);
  Tensor partial = at::empty({splits, nnz}, input.options().dtype(acc_type(input)));
  const bool wide = partial.scalar_type() == at::kDouble;
  wide ? clear(partial.data_ptr<double>(), partial.numel())
       : clear(partial.data_ptr<float>(), partial.numel());
  if (input.size(0) > 0 && nnz > 0) {
    WeightGradient p{};
    std::vector<int32_t> starts;
    p.entries = block_entries(crow.const_data_ptr<int32_t>(), rows.const_data_ptr<int32_t>(),
                              g.out_channels, g.channels_per_group, g.groups, layout, &starts);
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
    p.piece = piece.length;
    p.tile_length = piece.tile_length;
    const int64_t packed = lane_groups * (g.out_channels * piece.length +
                                          g.in_channels() * (piece.length + layout.span()));
    run_kernel(p, &KernelTable::wgrad, element,
               lane_groups * piece.length * nnz + packed * kPackCost);
  }
  wide ? add_up(partial.data_ptr<double>(), splits, nnz)
       : add_up(partial.data_ptr<float>(), splits, nnz);
  return partial[0].to(input.scalar_type());
}

}  // namespace

TORCH_LIBRARY_IMPL(sparseconv, CPU, m) {
  m.impl("wgrad", wgrad);
}

}  // namespace sparseconv
