// Layers in a row on tensors in an order of the kernels' own: one conversion in, one out, and a
// single call each way.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <optional>
#include <vector>

#include "chain_order.h"

namespace sparseconv {

// Sparse convolutions, dense 1x1 convolutions, and BatchNorm1d followed by ReLU.
class Chain {
 public:
  using Tensors = std::vector<std::optional<at::Tensor>>;

  enum class Kind { conv, pointwise, norm_relu };
  struct Stage {
    Kind kind;
    bool relu = false;
    double eps = 0;
    bool training = false;
    // Of a sparse convolution.
    ConvPlanPtr plan = {};
    at::Tensor crow = {}, col = {};
    int64_t version = 0;
    std::vector<int64_t> geometry = {};

    // Throws RuntimeError if the tensors of the pattern were changed in place.
    void check_untouched() const;
  };
  const std::vector<Stage>& stages() const { return stages_; }

  // In rows it computes in bfloat16, by blocks, of bfloat16 and float32 alike; else in lanes.
  explicit Chain(bool in_rows) : in_rows_(in_rows) {}
  bool in_rows() const { return in_rows_; }

  void add_conv(const at::Tensor& crow, const at::Tensor& col, at::IntArrayRef geometry, bool relu);
  void add_pointwise();
  void add_norm_relu(double eps, bool training);

  struct Result {
    at::Tensor output;             // (N, C, L)
    std::vector<at::Tensor> kept;  // what `backward` needs, if it was to be kept
  };
  // What a norm keeps of the batches it has seen; training updates it.
  struct Statistics {
    std::optional<at::Tensor> mean, var, counter;
    std::optional<double> momentum;  // without, mean and variance over all batches are kept
  };
  // Throws ValueError or TypeError if `forward`, which checks nothing itself, cannot take these.
  // x: (N, C, L), not a negated view. parameters: two for each stage, (values, bias) or (weight,
  // bias). statistics: of each stage.
  void check(const at::Tensor& x,
             const Tensors& parameters,
             const std::vector<Statistics>& statistics) const;
  Result forward(const at::Tensor& x,
                 const Tensors& parameters,
                 const std::vector<Statistics>& statistics,
                 bool keep) const;

  // Gradients of x and of the parameters, as far as they are `needed`, x first. grad: as the
  // output; parameters: those of `forward`.
  Tensors backward(const at::Tensor& grad,
                   const std::vector<at::Tensor>& kept,
                   const Tensors& parameters,
                   const std::vector<bool>& needed) const;

 private:
  // Of tensors like x; the first stage takes `channels` channels.
  void check_parameters(const at::Tensor& x, int64_t channels, const Tensors& parameters) const;
  std::unique_ptr<ChainOrder> order_for(const at::Tensor& signal) const;
  // Of the output of stage i, whose input has `channels`.
  int64_t channels_after(size_t i, const Tensors& parameters, int64_t channels) const;

  const bool in_rows_;
  int64_t margin_ = 0;  // samples that a convolution reads before or after a series, at most
  std::vector<Stage> stages_;
};

}  // namespace sparseconv
