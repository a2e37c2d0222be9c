// Layers in a row with their gradients where torch just computes: one call each way.
#pragma once

#include <ATen/core/Tensor.h>
#include <pybind11/pybind11.h>

#include <memory>
#include <optional>

#include "../cpu/chain.h"

namespace sparseconv {

// The output of `chain` for x, as Chain::forward; nothing if something else than computing is asked
// for, or if the arguments do not fit: then nothing is changed.
// parameters: two for each stage, tensors or None. statistics: one for each stage, None or
// (running_mean, running_var, num_batches_tracked, momentum), each of which may be None.
std::optional<at::Tensor> plain_chain(const std::shared_ptr<Chain>& chain,
                                      pybind11::handle x,
                                      const pybind11::list& parameters,
                                      const pybind11::list& statistics);

}  // namespace sparseconv
