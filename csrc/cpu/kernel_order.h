// The orders in which tensors stay between layers, and the computations on them.
#pragma once

#include <memory>
#include <optional>
#include <tuple>
#include <vector>

#include "conv.h"

namespace sparseconv {

// A convolution that keeps the length. Its weights are those of a pattern, or without a plan the
// dense ones of a kernel with one tap, (C_out, C_in, 1); of gradients, nothing but these are read.
struct Convolution {
  const ConvPlan* plan;
  Tensor weights = {};
  std::optional<Tensor> bias = {};
  Tensor added = {};  // to a dense one, if it is defined
  bool relu = false;  // of a sparse one
};

// What BatchNorm1d, ReLU and their gradients compute of the channels of `parts`, one part after the
// other. Tensors that are undefined do not exist.
struct Norm {
  std::vector<Tensor> parts;
  int64_t channels;
  Tensor weight, bias, running_mean, running_var;
  Tensor added;  // before ReLU; of gradients the output, if something was added
  double momentum, eps;
  bool training;  // else the running statistics are read
  bool relu;
  Tensor grad, mean, invstd;  // of gradients; invstd: 1 / standard deviation
};
// The gradient of the parts is one tensor.
struct NormGradients {
  Tensor input, added, weight, bias;
};

class KernelOrder {
 public:
  virtual ~KernelOrder() = default;
  // From and to (N, C, L).
  virtual Tensor enter(const Tensor& signal) const = 0;
  virtual Tensor leave(const Tensor& own, int64_t channels) const = 0;

  virtual Tensor fprop(const Tensor& input, const Convolution& c) const = 0;
  virtual Tensor dgrad(const Tensor& grad, const Convolution& c) const = 0;
  virtual Tensor wgrad(const Tensor& grad, const Tensor& input, const Convolution& c) const = 0;
  virtual Tensor sum_of_channels(const Tensor& grad, int64_t channels) const = 0;

  // The sizes of a tensor of this many channels.
  virtual std::vector<int64_t> sizes(int64_t channels) const = 0;
  // A contiguous tensor as kernels may read it.
  virtual Tensor readable(const Tensor& own) const = 0;
  // The output, the mean and 1 / standard deviation.
  virtual std::tuple<Tensor, Tensor, Tensor> norm(const Norm& norm) const = 0;
  // In place: into norm.grad.
  virtual NormGradients norm_gradient(const Norm& norm, bool in_place) const = 0;
  // The largest samples of windows, as MaxPool says; with the gradient of this, if defined, the
  // gradient of the input.
  virtual Tensor max_pool(const Tensor& input,
                          const Tensor& grad,
                          int64_t size,
                          int64_t stride) const = 0;
  // The average of each series, (N, C).
  virtual Tensor mean(const Tensor& input, int64_t channels) const = 0;
};

}  // namespace sparseconv
