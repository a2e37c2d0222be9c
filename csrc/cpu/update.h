// One update of dynamic sparse training on the CPU: prune the smallest weights, grow others.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <optional>
#include <tuple>
#include <vector>

namespace sparseconv {

using at::Tensor;

// Output channels first..end, taps left..right: half-open.
using Box = std::array<int64_t, 4>;

// The new crow_indices and col_indices; source, int64: the old CSR index of each new weight, -1 if
// it was grown; and uint8, a bit for each weight of the layer, set where it is active.
using Update = std::tuple<Tensor, Tensor, Tensor, Tensor>;

// As sparseconv/dst/update.py describes `prune_and_grow`.
// shape: (C_out, C_in // groups, K); boxes: disjoint; magnitudes: (nnz,), float32 or float64,
// not negative, no NaN; scores: (C_out, C_in // groups, K) likewise, by which to grow, else random
// by `seed`. Throws ValueError or TypeError for arrays that do not fit each other.
Update prune_and_grow(const Tensor& crow,
                      const Tensor& col,
                      std::array<int64_t, 3> shape,
                      const std::vector<Box>& boxes,
                      double fraction,
                      const Tensor& magnitudes,
                      const std::optional<Tensor>& scores,
                      uint64_t seed);

}  // namespace sparseconv
