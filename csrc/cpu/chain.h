// Layers in a row on tensors in lanes: one conversion in, one out, and a single call each way.
#pragma once

#include <ATen/ATen.h>

#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "conv.h"

namespace sparseconv {

// The plans of a sparse convolution, made and checked once for a pattern.
class ConvPlan {
 public:
  // As plan_fprop (ops/plan.cpp). Throws ValueError.
  ConvPlan(const at::Tensor& crow, const at::Tensor& col, at::IntArrayRef geometry);

  const Geometry geometry;
  const int64_t nnz;
  const CorrelationPlan& fprop() const { return *fprop_; }
  const DgradPlan& dgrad() const;  // made when first asked for, as is the next
  const WgradPlan& wgrad() const;

 private:
  at::Tensor crow_, col_;
  std::vector<int32_t> fprop_rows_;
  std::optional<CorrelationPlan> fprop_;
  mutable std::once_flag dgrad_once_, wgrad_once_;
  mutable std::vector<int32_t> dgrad_pointers_, dgrad_rows_, dgrad_index_;
  mutable std::vector<int32_t> wgrad_rows_, wgrad_batches_, wgrad_row_starts_;
  mutable DgradPlan dgrad_;
  mutable WgradPlan wgrad_;
};

// Sparse convolutions, dense 1x1 convolutions without bias, and BatchNorm1d followed by ReLU.
class Chain {
 public:
  using Tensors = std::vector<std::optional<at::Tensor>>;

  void add_conv(std::shared_ptr<const ConvPlan> plan, bool relu);
  void add_pointwise();
  void add_norm_relu(double eps, bool training);

  struct Result {
    at::Tensor output;             // (N, C, L)
    std::vector<at::Tensor> kept;  // what `backward` needs, if it was to be kept
  };
  // x: (N, C, L). parameters: two for each stage, (values, bias), (weight, null) or (weight, bias).
  // statistics: two for each stage, running mean and variance of norms, which training updates;
  // momenta: one for each stage.
  Result forward(const at::Tensor& x,
                 const Tensors& parameters,
                 const Tensors& statistics,
                 const std::vector<double>& momenta,
                 bool keep) const;

  // Gradients of x and of the parameters, as far as they are `needed`, x first.
  Tensors backward(const at::Tensor& grad,
                   const std::vector<at::Tensor>& kept,
                   const Tensors& parameters,
                   const std::vector<bool>& needed) const;

 private:
  enum class Kind { conv, pointwise, norm_relu };
  struct Stage {
    Kind kind;
    std::shared_ptr<const ConvPlan> plan;
    bool relu;
    double eps;
    bool training;
  };
  // Throws ValueError or TypeError.
  void check(const at::Tensor& x,
             const Tensors& parameters,
             const Tensors& statistics,
             const std::vector<double>& momenta) const;
  std::vector<Stage> stages_;
};

}  // namespace sparseconv
