#include "rows.h"

#include <ATen/TensorOperators.h>
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
  p.in = order.of(input);
  p.batch = order.batch;
  p.length = order.length;
  p.panels = panels_of(channels);
  return p;
}

void run_rows(const RowNorm& p, void (*kernel)(const RowNorm&, int64_t, int64_t, void*)) {
  run_parts(p, kernel, p.batch * p.panels * p.length / kRowGrain);
}

// Sums of dz and dz * (x - mean) of each channel, over the series in their order.
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

// Of each channel.
struct Moments {
  std::vector<double> sum, distances;  // of squares, from the mean
};

// From the statistics of near-equal chunks of the rows.
Moments moments_of(const Tensor& input, int64_t channels, const RowOrder& order) {
  RowNorm p = norm_of(input, channels, order);
  const int64_t chunks = ceil_div(order.length, kBlockRows), pitch = p.panels * kStatistics;
  const Tensor statistics = at::empty({order.batch * chunks * pitch}, at::kDouble);
  p.sums = statistics.mutable_data_ptr<double>();
  run_rows(p, checked_kernels().blocks->row_statistics);
  const auto visit = [&](auto add) {
    for (int64_t unit = 0; unit < order.batch * chunks; ++unit) {
      const int64_t chunk = unit % chunks;
      const auto rows =
          static_cast<double>(order.length * (chunk + 1) / chunks - order.length * chunk / chunks);
      for (int64_t c = 0; c < channels; ++c) {
        const double* of =
            p.sums + unit * pitch + c / kPanelChannels * kStatistics + c % kPanelChannels;
        add(c, rows, of[0] + of[kPanelChannels] / rows, of);
      }
    }
  };
  Moments found{std::vector<double>(channels), std::vector<double>(channels)};
  visit([&](int64_t c, double rows, double mean, const double*) { found.sum[c] += rows * mean; });
  const auto n = static_cast<double>(order.batch * order.length);
  visit([&](int64_t c, double rows, double mean, const double* of) {
    const double sum = of[kPanelChannels], squares = of[2 * kPanelChannels] - sum * sum / rows;
    const double distance = mean - found.sum[c] / n;
    found.distances[c] += (squares < 0 ? 0 : squares) + rows * distance * distance;  // a NaN stays
  });
  return found;
}

}  // namespace

Tensor RowOrder::sum_of_channels(const Tensor& rows, int64_t channels) const {
  RowNorm p = norm_of(rows, channels, *this);
  p.grad = p.in;
  return tensor_of(sums_of(p, channels)[0]);
}

Tensor RowOrder::mean(const Tensor& input, int64_t channels) const {
  RowNorm p = norm_of(input, channels, *this);
  const Tensor sums = at::empty({batch, p.panels, 2, kPanelChannels}, at::kDouble);
  p.grad = p.in;
  p.sums = sums.mutable_data_ptr<double>();
  run_rows(p, checked_kernels().blocks->row_sums);
  const Tensor each = sums.select(2, 0).flatten(1).narrow(1, 0, channels);
  return each.div(static_cast<double>(length)).to(at::kBFloat16);
}

Tensor RowOrder::max_pool(const Tensor& input,
                          const Tensor& grad,
                          int64_t size,
                          int64_t stride) const {
  const int64_t channels = input.size(0) * kPanelChannels;
  const RowOrder pooled(batch, pooled_length(length, size, stride), margin);
  const RowOrder& result = grad.defined() ? *this : pooled;
  Tensor out = result.empty(channels);
  const RowPool p{of(input),      grad.defined() ? pooled.of(grad) : Rows{},
                  result.of(out), batch,
                  length,         pooled.length,
                  input.size(0),  size,
                  stride};
  run_parts(p, checked_kernels().blocks->pool_rows, batch * length * p.panels / kRowGrain);
  return out;
}

namespace {

// The rows of channels from `first` on, which begins a panel; none without a tensor.
Rows rows_from(const Tensor& rows, int64_t first, const RowOrder& order) {
  if (!rows.defined()) {
    return {};
  }
  Rows found = order.of(rows);
  found.data = found.at(0, first / kBlockSize, 0);
  return found;
}

// Calls visit(rows, first channel, channels) for each part; all but the last fill their panels.
template <typename Visit>
void for_each_part(const Norm& norm, Visit visit) {
  int64_t first = 0;
  for (const Tensor& part : norm.parts) {
    const int64_t count = std::min(part.size(0) * kPanelChannels, norm.channels - first);
    visit(part, first, count);
    first += count;
  }
}

void append(std::vector<double>& to, const std::vector<double>& numbers) {
  to.insert(to.end(), numbers.begin(), numbers.end());
}

// What both passes read: z = (x - centre) * scale + shift.
struct NormVectors {
  PanelVector centre, scale, shift;

  NormVectors(const std::vector<double>& mean,
              const std::vector<double>& invstd,
              const Norm& norm) {
    const auto channels = static_cast<int64_t>(mean.size());
    const std::vector<double> weight = numbers(norm.weight, channels, 1);
    const std::vector<double> bias = numbers(norm.bias, channels, 0);
    centre = of_channels(channels, [&](int64_t c) { return mean[c]; });
    scale = of_channels(channels, [&](int64_t c) { return invstd[c] * weight[c]; });
    shift = of_channels(channels, [&](int64_t c) { return bias[c]; });
  }
  // Of a part whose first channel is `first` of the others.
  RowNorm norm_of(const Tensor& part,
                  int64_t first,
                  int64_t channels,
                  const Norm& norm,
                  const RowOrder& order) const {
    RowNorm p = sparseconv::norm_of(part, channels, order);
    p.relu = norm.relu;
    p.added = rows_from(norm.added, first, order);
    p.grad = rows_from(norm.grad, first, order);
    p.centre = centre.data() + first;
    p.scale = scale.data() + first;
    p.shift = shift.data() + first;
    return p;
  }
};

}  // namespace

std::tuple<Tensor, Tensor, Tensor> RowOrder::norm(const Norm& norm) const {
  const int64_t channels = norm.channels;
  const auto n = static_cast<double>(batch * length);
  std::vector<double> mean = numbers(norm.running_mean, channels, 0);
  std::vector<double> var = numbers(norm.running_var, channels, 1);
  if (norm.training) {
    Moments found;
    for_each_part(norm, [&](const Tensor& part, int64_t, int64_t count) {
      const Moments of_part = moments_of(part, count, *this);
      append(found.sum, of_part.sum);
      append(found.distances, of_part.distances);
    });
    std::vector<double> unbiased(channels);
    for (int64_t c = 0; c < channels; ++c) {
      mean[c] = found.sum[c] / n;
      var[c] = found.distances[c] / n;
      unbiased[c] = found.distances[c] / (n - 1);
    }
    follow(norm.running_mean, mean, norm.momentum);
    follow(norm.running_var, unbiased, norm.momentum);
  }
  std::vector<double> invstd(channels);
  for (int64_t c = 0; c < channels; ++c) {
    invstd[c] = static_cast<float>(1 / std::sqrt(var[c] + norm.eps));
  }
  const NormVectors vectors(mean, invstd, norm);
  Tensor output = empty(channels);
  for_each_part(norm, [&](const Tensor& part, int64_t first, int64_t count) {
    RowNorm p = vectors.norm_of(part, first, count, norm, *this);
    p.out = rows_from(output, first, *this);
    run_rows(p, checked_kernels().blocks->norm_rows);
  });
  return {output, tensor_of(mean), tensor_of(invstd)};
}

NormGradients RowOrder::norm_gradient(const Norm& norm, bool in_place) const {
  const int64_t channels = norm.channels;
  NormGradients found{in_place ? norm.grad : empty(channels),
                      norm.added.defined() ? empty(channels) : Tensor()};
  const auto n = static_cast<double>(batch * length);
  const std::vector<double> inverse = numbers(norm.invstd, channels, 0);
  const NormVectors vectors(numbers(norm.mean, channels, 0), inverse, norm);
  std::vector<double> sums, products;  // of dz, and of dz * (x - mean)
  for_each_part(norm, [&](const Tensor& part, int64_t first, int64_t count) {
    const auto [sums_of_part, products_of_part] =
        sums_of(vectors.norm_of(part, first, count, norm, *this), count);
    append(sums, sums_of_part);
    append(products, products_of_part);
  });
  for (int64_t c = 0; c < channels; ++c) {
    products[c] *= inverse[c];
  }
  // grad_in = scale * dz - scale / n * (sum of dz + xhat * sum of dz * xhat)
  const auto each = [&](int64_t c) { return norm.training ? -vectors.scale[c] / n : 0; };
  const PanelVector offset = of_channels(channels, [&](int64_t c) { return each(c) * sums[c]; });
  const PanelVector slope =
      of_channels(channels, [&](int64_t c) { return each(c) * products[c] * inverse[c]; });
  for_each_part(norm, [&](const Tensor& part, int64_t first, int64_t count) {
    RowNorm p = vectors.norm_of(part, first, count, norm, *this);
    p.slope = slope.data() + first;
    p.offset = offset.data() + first;
    p.out = rows_from(found.input, first, *this);
    p.grad_added = rows_from(found.added, first, *this);
    run_rows(p, checked_kernels().blocks->norm_rows);
  });
  found.weight = tensor_of(products);
  found.bias = tensor_of(sums);
  return found;
}

}  // namespace sparseconv
