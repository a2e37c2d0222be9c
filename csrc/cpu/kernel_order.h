// The orders in which tensors stay between layers, and the computations on them.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <optional>
#include <vector>

#include "conv.h"

namespace sparseconv {

// What BatchNorm1d and ReLU compute. Tensors that are undefined do not exist.
struct Norm {
  at::Tensor weight, bias, running_mean, running_var;
  double momentum, eps;
  bool training;  // else the running statistics are read
};
struct NormOutput {
  at::Tensor output, mean, invstd;  // invstd: 1 / standard deviation
};
// The gradient of the parts is one tensor.
struct NormGradients {
  at::Tensor input, added, weight, bias;
};

class KernelOrder {
 public:
  virtual ~KernelOrder() = default;
  // From and to (N, C, L).
  virtual at::Tensor enter(const at::Tensor& signal) const = 0;
  virtual at::Tensor leave(const at::Tensor& own, int64_t channels) const = 0;

  virtual at::Tensor fprop(const at::Tensor& input,
                           const at::Tensor& values,
                           const std::optional<at::Tensor>& bias,
                           const ConvPlan& plan,
                           bool relu) const = 0;
  virtual at::Tensor dgrad(const at::Tensor& grad,
                           const at::Tensor& values,
                           const ConvPlan& plan) const = 0;
  virtual at::Tensor wgrad(const at::Tensor& grad,
                           const at::Tensor& input,
                           const ConvPlan& plan) const = 0;
  // Of dense 1x1 convolutions; weight: (C_out, C_in, 1). `bias` and `added`, if they are defined,
  // are added.
  virtual at::Tensor pointwise_fprop(const at::Tensor& input,
                                     const at::Tensor& weight,
                                     const at::Tensor& bias,
                                     const at::Tensor& added) const = 0;
  virtual at::Tensor pointwise_dgrad(const at::Tensor& grad, const at::Tensor& weight) const = 0;
  virtual at::Tensor pointwise_wgrad(const at::Tensor& grad,
                                     const at::Tensor& input,
                                     const at::Tensor& weight) const = 0;
  virtual at::Tensor sum_of_channels(const at::Tensor& grad, int64_t channels) const = 0;

  // The sizes of a tensor of this many channels.
  virtual std::vector<int64_t> sizes(int64_t channels) const = 0;
  // A contiguous tensor as kernels may read it.
  virtual at::Tensor readable(const at::Tensor& own) const = 0;
  // BatchNorm of the channels of `parts`, one part after the other, plus `added`, if that is
  // defined, then ReLU if wanted.
  virtual NormOutput norm(const std::vector<at::Tensor>& parts,
                          int64_t channels,
                          const Norm& norm,
                          const at::Tensor& added,
                          bool relu) const = 0;
  // `output`: of `norm`, if something was added there. `in_place`, the gradient of the parts takes
  // the memory of `grad`.
  virtual NormGradients norm_gradient(const at::Tensor& grad,
                                      const std::vector<at::Tensor>& parts,
                                      int64_t channels,
                                      const Norm& norm,
                                      const at::Tensor& output,
                                      bool relu,
                                      const at::Tensor& mean,
                                      const at::Tensor& invstd,
                                      bool in_place) const = 0;
  // The largest samples of windows, as MaxPool says; with the gradient of this, if defined, the
  // gradient of the input.
  virtual at::Tensor max_pool(const at::Tensor& input,
                              const at::Tensor& grad,
                              int64_t size,
                              int64_t stride) const = 0;
  // The average of each series, (N, C).
  virtual at::Tensor mean(const at::Tensor& input, int64_t channels) const = 0;
};

}  // namespace sparseconv
