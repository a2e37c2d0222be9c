// One update of a pattern in dynamic sparse training, whose reference is in
// sparseconv/dst/update.py.
#pragma once

#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>

#include <array>
#include <optional>
#include <tuple>
#include <vector>

namespace sparseconv {

using Shape = std::array<int64_t, 3>;  // (C_out, C_in // groups, K)

// Moves a share of each region's active weights. Takes float64 weights (nnz,), regions as (first,
// end) output channel and (first, end) tap, disjoint and inside of `shape`, and, to grow where they
// are largest, float64 gradients of all weights. Returns the new crow_indices and col_indices, and
// each weight's old index or -1, int64; nothing if nothing moves. The same as `_reference`, with
// the same draws.
std::optional<std::tuple<at::Tensor, at::Tensor, at::Tensor>> prune_and_grow(
    const at::Tensor& crow,
    const at::Tensor& col,
    Shape shape,
    const at::Tensor& values,
    const std::vector<std::array<int64_t, 4>>& regions,
    double fraction,
    const std::optional<at::Tensor>& gradient,
    const std::optional<at::Generator>& generator);

// Sets the bit, in uint8 bits, of each active weight's flat position.
void mark_active(const at::Tensor& bits,
                 const at::Tensor& crow,
                 const at::Tensor& col,
                 Shape shape);

}  // namespace sparseconv
