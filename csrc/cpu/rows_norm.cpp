#include "rows.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include "../checks.h"
#include "launch.h"

namespace sparseconv {

namespace {

// The numbers of a vector, float32 or bfloat16; without one `otherwise`.
std::vector<double> numbers(const Tensor& vector, int64_t channels, double otherwise) {
  std::vector<double> found(channels, otherwise);
  for (int64_t c = 0; vector.defined() && c < channels; ++c) {
    found[c] = vector.scalar_type() == at::kFloat
                   ? static_cast<double>(vector.const_data_ptr<float>()[c])
                   : static_cast<float>(vector.const_data_ptr<at::BFloat16>()[c]);
  }
  return found;
}

// Lets a running statistic follow the batch's; without one nothing.
void follow(const Tensor& running, const std::vector<double>& batch, double momentum) {
  const auto update = [&](auto* kept) {
    for (const double each : batch) {
      *kept = static_cast<float>(momentum * each + (1 - momentum) * static_cast<float>(*kept));
      ++kept;
    }
  };
  if (running.defined() && running.scalar_type() == at::kFloat) {
    update(running.mutable_data_ptr<float>());
  } else if (running.defined()) {
    update(running.mutable_data_ptr<at::BFloat16>());
  }
}

Tensor tensor_of(const std::vector<double>& numbers) {
  Tensor found = at::empty({static_cast<int64_t>(numbers.size())}, at::kFloat);
  std::copy(numbers.begin(), numbers.end(), found.mutable_data_ptr<float>());
  return found;
}

// Of each channel, a number for a kernel: whole panels, zeros after the channels.
using PanelVector = std::vector<float>;
template <typename Number>
PanelVector of_channels(int64_t channels, Number number) {
  PanelVector found(panels_of(channels) * kPanelChannels);
  for (int64_t c = 0; c < channels; ++c) {
    found[c] = static_cast<float>(number(c));
  }
  return found;
}

RowNorm norm_of(const Tensor& input, int64_t channels, const RowOrder& order) {
  RowNorm p{};
  p.in = order.of(input, channels);
  p.batch = order.batch;
  p.length = order.length;
  p.panels = panels_of(channels);
  return p;
}

void run_rows(const RowNorm& p, void (*kernel)(const RowNorm&, int64_t, int64_t, void*)) {
  run_parts(p, kernel, p.batch * p.panels * p.length / kRowGrain);
}

// Two sums of each channel, over the series in their order.
std::array<std::vector<double>, 2> sums_of(RowNorm p, int64_t channels) {
  std::vector<double> parts(p.batch * p.panels * 2 * kPanelChannels);
  p.sums = parts.data();
  run_rows(p, checked_kernels().blocks->row_sums);
  std::array<std::vector<double>, 2> sums{std::vector<double>(channels),
                                          std::vector<double>(channels)};
  for (int64_t n = 0; n < p.batch; ++n) {
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t i = 0; i < 2; ++i) {
        sums[i][c] += parts[((n * p.panels + c / kPanelChannels) * 2 + i) * kPanelChannels +
                            c % kPanelChannels];
      }
    }
  }
  return sums;
}

}  // namespace

Tensor row_sum_of_channels(const Tensor& rows, int64_t channels, const RowOrder& order) {
  return tensor_of(sums_of(norm_of(rows, channels, order), channels)[0]);
}

std::tuple<Tensor, Tensor, Tensor> row_norm_relu(const Tensor& input,
                                                 int64_t channels,
                                                 const RowOrder& order,
                                                 const Norm& norm) {
  RowNorm p = norm_of(input, channels, order);
  const auto n = static_cast<double>(order.batch * order.length);
  std::vector<double> mean = numbers(norm.running_mean, channels, 0);
  std::vector<double> var = numbers(norm.running_var, channels, 1);
  if (norm.training) {
    // Distances from the first sample: sums of squares about 0 would cancel.
    const PanelVector first = of_channels(channels, [&](int64_t c) {
      const char* sample = p.in.at(0, c / kBlockSize, 0) + c % kBlockSize * 2;
      return static_cast<float>(*reinterpret_cast<const at::BFloat16*>(sample));
    });
    p.centre = first.data();
    const auto [sums, squares] = sums_of(p, channels);
    std::vector<double> unbiased(channels);
    for (int64_t c = 0; c < channels; ++c) {
      const double shift = sums[c] / n, distances = squares[c] - shift * sums[c];
      mean[c] = first[c] + shift;
      var[c] = (distances < 0 ? 0 : distances) / n;  // rounding; a NaN stays
      unbiased[c] = var[c] * n / (n - 1);
    }
    follow(norm.running_mean, mean, norm.momentum);
    follow(norm.running_var, unbiased, norm.momentum);
  }
  std::vector<double> invstd(channels);
  for (int64_t c = 0; c < channels; ++c) {
    invstd[c] = static_cast<float>(1 / std::sqrt(var[c] + norm.eps));
  }
  const std::vector<double> weight = numbers(norm.weight, channels, 1);
  const std::vector<double> bias = numbers(norm.bias, channels, 0);
  const PanelVector centre = of_channels(channels, [&](int64_t c) { return mean[c]; });
  const PanelVector scale = of_channels(channels, [&](int64_t c) { return invstd[c] * weight[c]; });
  const PanelVector shift = of_channels(channels, [&](int64_t c) { return bias[c]; });
  Tensor output = order.empty(channels);
  p.centre = centre.data();
  p.scale = scale.data();
  p.shift = shift.data();
  p.out = order.of(output, channels);
  run_rows(p, checked_kernels().blocks->norm_rows);
  return {output, tensor_of(mean), tensor_of(invstd)};
}

std::tuple<Tensor, Tensor> row_norm_relu_gradient(const Tensor& grad,
                                                  const Tensor& input,
                                                  int64_t channels,
                                                  const RowOrder& order,
                                                  const Norm& norm,
                                                  const Tensor& mean,
                                                  const Tensor& invstd) {
  RowNorm p = norm_of(input, channels, order);
  const auto n = static_cast<double>(order.batch * order.length);
  const std::vector<double> weight = numbers(norm.weight, channels, 1);
  const std::vector<double> bias = numbers(norm.bias, channels, 0);
  const std::vector<double> inverse = numbers(invstd, channels, 0);
  const auto* means = mean.const_data_ptr<float>();
  const PanelVector centre = of_channels(channels, [&](int64_t c) { return means[c]; });
  const PanelVector scale =
      of_channels(channels, [&](int64_t c) { return inverse[c] * weight[c]; });
  const PanelVector shift = of_channels(channels, [&](int64_t c) { return bias[c]; });
  p.grad = order.of(grad, channels);
  p.centre = centre.data();
  p.scale = scale.data();
  p.shift = shift.data();
  auto [sums, products] = sums_of(p, channels);  // of dz, and of dz * (x - mean)
  for (int64_t c = 0; c < channels; ++c) {
    products[c] *= inverse[c];
  }
  // grad_in = scale * dz - scale / n * (sum of dz + xhat * sum of dz * xhat)
  const PanelVector offset =
      of_channels(channels, [&](int64_t c) { return -scale[c] / n * sums[c]; });
  const PanelVector slope =
      of_channels(channels, [&](int64_t c) { return -scale[c] / n * products[c] * inverse[c]; });
  p.slope = slope.data();
  p.offset = offset.data();
  p.out = p.grad;
  run_rows(p, checked_kernels().blocks->norm_rows);
  return {tensor_of(products), tensor_of(sums)};
}

}  // namespace sparseconv
