// Layers in a row on tensors in lanes: one conversion in, one out, and a single call each way.
#pragma once

#include <ATen/ATen.h>

#include <optional>
#include <vector>

#include "conv.h"

namespace sparseconv {

// Sparse convolutions, dense 1x1 convolutions without bias, and BatchNorm1d followed by ReLU.
class Chain {
 public:
  using Tensors = std::vector<std::optional<at::Tensor>>;

  void add_conv(ConvPlanPtr plan, bool relu);
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
    ConvPlanPtr plan;
    bool relu;
    double eps;
    bool training;
  };
  // Throws ValueError or TypeError. Of tensors like x; the first stage takes so many channels.
  // `statistics`: null, or those of all stages.
  void check(const at::Tensor& x,
             int64_t channels,
             const Tensors& parameters,
             const Tensors* statistics) const;
  // What `forward` kept, which hooks of saved tensors may have changed.
  void check_kept(const at::Tensor& grad,
                  const std::vector<at::Tensor>& kept,
                  const Tensors& parameters,
                  const LaneOrder& order) const;
  std::vector<Stage> stages_;
};

}  // namespace sparseconv
