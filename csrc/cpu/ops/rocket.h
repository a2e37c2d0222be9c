// Banks of random kernels, checked once, and the features of series.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <memory>
#include <mutex>
#include <tuple>
#include <vector>

#include "../rocket.h"

namespace sparseconv {

using at::Tensor;

class RocketPlan {
 public:
  RocketPlan(const Tensor& length,
             const Tensor& dilation,
             const Tensor& padding,
             const Tensor& bias,
             const Tensor& n_channels,
             const Tensor& channels,
             const Tensor& weights,
             int64_t series_channels,
             int64_t series_length);
  void features(const Tensor& x, const Tensor& out);

 private:
  // Weights packed for vectors of `width` kernels.
  struct Lanes {
    int64_t width;
    std::vector<RocketLanes> groups;
    double cost;     // of a series, where a vector of outputs of a kernel costs 1
    Tensor weights;  // at::empty, whose alignment vectors need
  };
  std::shared_ptr<const Lanes> lanes(int64_t width);

  std::vector<RocketKernel> kernels_;
  std::vector<int32_t> channels_;
  std::vector<float> weights_;
  std::shared_ptr<const Lanes> lanes_;  // of the last instruction set
  std::mutex packing_;
  int64_t work_ = 0, series_channels_, series_length_;
};

class MiniRocketPlan {
 public:
  MiniRocketPlan(const Tensor& taps,
                 const Tensor& dilation,
                 const Tensor& padded,
                 const Tensor& n_biases,
                 const Tensor& biases,
                 const Tensor& n_channels,
                 const Tensor& channels,
                 int64_t series_channels,
                 int64_t series_length);
  void features(const Tensor& x, const Tensor& out) const;

 private:
  std::vector<MiniRocketKernel> kernels_;
  std::vector<int32_t> channels_;
  std::vector<float> biases_;
  int64_t series_channels_, series_length_;
};

}  // namespace sparseconv
