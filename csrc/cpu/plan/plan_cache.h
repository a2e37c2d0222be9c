// Where the plans of patterns are kept: they belong to the two tensors of a pattern.
#pragma once

#include <ATen/core/Tensor.h>

#include "conv_plan.h"

namespace sparseconv {

// The plan of a pattern and a geometry, made when it is first asked for. It is found by the memory
// of the tensors, which the cache does not keep alive, and made again once they were changed in
// place. Throws ValueError or TypeError if they are not those of a pattern of this geometry.
// geometry: see check_geometry.
ConvPlanPtr plan_of(const at::Tensor& crow, const at::Tensor& col, at::IntArrayRef geometry);

// The same if it was made before, and the tensors were not changed since; else null.
ConvPlanPtr known_plan(const at::Tensor& crow, const at::Tensor& col, at::IntArrayRef geometry);

// The plan of a dense 1x1 convolution; without blocks if it has too many channels. With one input
// channel of ones, its weights are a bias.
const ConvPlan& pointwise_plan(int64_t out_channels, int64_t in_channels);

// What all plans made of these tensors take, in bytes.
int64_t plan_bytes(const at::Tensor& crow, const at::Tensor& col);

}  // namespace sparseconv
