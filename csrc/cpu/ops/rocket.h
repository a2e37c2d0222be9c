// Banks of random kernels, checked once, and the features of series.
#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "../rocket.h"

namespace sparseconv {

using at::Tensor;

// The arrays of a bank, by name, and the shape of its series.
struct KernelBank {
  std::map<std::string, Tensor> arrays;
  int64_t series_channels, series_length;
};

class RocketPlan {
 public:
  explicit RocketPlan(const KernelBank& bank);
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
  explicit MiniRocketPlan(const KernelBank& bank);
  void features(const Tensor& x, const Tensor& out) const;

 private:
  std::vector<MiniRocketKernel> kernels_;
  std::vector<int32_t> channels_;
  std::vector<float> biases_;
  int64_t series_channels_, series_length_;
};

}  // namespace sparseconv
