#include "rows.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <map>
#include <mutex>
#include <vector>

#include "../checks.h"
#include "launch.h"

namespace sparseconv {

namespace {

constexpr int64_t kPanelChannels = 2 * kBlockSize;
constexpr int64_t kRowGrain = 16 * 1024;  // rows worth a thread

int64_t panels_of(int64_t channels) {
  return ceil_div(channels, kPanelChannels);
}

float to_float(const char* half) {
  uint16_t bits;
  std::memcpy(&bits, half, sizeof(bits));
  return at::BFloat16(bits, at::BFloat16::from_bits());
}

// Writes the rows that a convolution reads as its padding.
void fill_margins(const Tensor& tensor,
                  int64_t channels,
                  const RowOrder& order,
                  int64_t left,
                  int64_t right,
                  PaddingMode mode) {
  const Rows rows = order.of(tensor, channels);
  const bool zeros = mode == PaddingMode::zeros;
  for (int64_t n = 0; n < order.batch; ++n) {
    for (int64_t panel = 0; panel < panels_of(channels); ++panel) {
      char* first = rows.at(n, 2 * panel, 0);
      char* last = rows.at(n, 2 * panel, order.length - 1);
      for (int64_t i = 1; i <= std::max(left, right); ++i) {
        if (i <= left) {
          zeros ? std::memset(first - i * kBlockRowBytes, 0, kBlockRowBytes)
                : std::memcpy(first - i * kBlockRowBytes, first, kBlockRowBytes);
        }
        if (i <= right) {
          zeros ? std::memset(last + i * kBlockRowBytes, 0, kBlockRowBytes)
                : std::memcpy(last + i * kBlockRowBytes, last, kBlockRowBytes);
        }
      }
    }
  }
}

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

// The gradient of samples that were copied into the padding of one side, added to theirs: what the
// weights make of sums over the rows that reach them.
void add_border(const Tensor& output,
                const Tensor& grad,
                const Tensor& values,
                const ConvPlan& plan,
                const RowOrder& order,
                bool right) {
  const Geometry& g = plan.geometry;
  const int64_t reach = g.reach(), panels = panels_of(g.out_channels);
  // Of each series a row for each tap; a tile has a row of each of 16 series.
  const int64_t series = ceil_div(order.batch, kTileRowCount) * kTileRowCount;
  const int64_t panel = reach * kBlockRowBytes;
  const Tensor sums = at::empty({series * panels * reach, kPanelChannels}, at::kBFloat16);
  char* first = static_cast<char*>(sums.mutable_data_ptr());
  const Rows rows_of_sums{first, panels * panel, panel};
  BorderSums q{order.of(grad, g.out_channels), rows_of_sums, order.batch, order.length, panels};
  q.count = reach;
  q.step = right ? -1 : 1;
  q.first = right ? order.length + g.left : -g.right - 1;
  q.out.data += right ? (reach - 1) * kBlockRowBytes : 0;
  run_parts(q, checked_kernels().blocks->border_sums, order.batch * panels * reach / kRowGrain);
  const Tensor found =
      at::empty({panels_of(g.in_channels()) * series, kPanelChannels}, at::kBFloat16);
  BlockCorrelation p{};
  p.step = panels * reach;
  p.batch = 1;
  p.in_rows = {first + (reach - 1) * kBlockRowBytes, 0, panel};
  p.out_rows = {static_cast<char*>(found.mutable_data_ptr()), 0, series * kBlockRowBytes};
  p.mode = PaddingMode::replicate;  // so that no entry is left out
  p.rows = order.batch;
  p.out_step = 1;
  run_block_dgrad(p, values, plan, 0);
  const Rows border = order.of(output, g.in_channels());
  for (int64_t n = 0; n < order.batch; ++n) {
    for (int64_t i = 0; i < panels_of(g.in_channels()); ++i) {
      auto* row =
          reinterpret_cast<at::BFloat16*>(border.at(n, 2 * i, right ? order.length - 1 : 0));
      const auto* more = reinterpret_cast<const at::BFloat16*>(p.out_rows.at(0, 2 * i, n));
      for (int64_t c = 0; c < kPanelChannels; ++c) {
        row[c] = static_cast<float>(row[c]) + static_cast<float>(more[c]);
      }
    }
  }
}

}  // namespace

int64_t scratch_bytes(const RowConversion& p) {
  return 2 * kBlockSize * staged(p.length) * 2 + kTileBytes;
}

int64_t scratch_bytes(const RowNorm&) {
  return 0;
}

int64_t scratch_bytes(const BorderSums&) {
  return 0;
}

Rows RowOrder::of(const Tensor& rows, int64_t channels) const {
  const int64_t panel = (length + 2 * margin) * kBlockRowBytes;
  return {static_cast<char*>(rows.mutable_data_ptr()) + margin * kBlockRowBytes,
          panels_of(channels) * panel, panel};
}

Tensor RowOrder::empty(int64_t channels) const {
  // A strip's last tile reads rows that no output needs.
  const int64_t rows = batch * panels_of(channels) * (length + 2 * margin) + kStripRows;
  return at::empty({rows, kPanelChannels}, at::kBFloat16);
}

Tensor to_rows(const Tensor& signal, const RowOrder& order) {
  const int64_t channels = signal.size(1);
  const Tensor own = signal.to(at::kBFloat16);
  Tensor rows = order.empty(channels);
  const RowConversion p{view(own), order.of(rows, channels), order.batch, channels, order.length};
  run_parts(p, checked_kernels().blocks->to_rows, order.batch);
  return rows;
}

Tensor from_rows(const Tensor& rows, int64_t channels, const RowOrder& order) {
  Tensor signal = at::empty({order.batch, channels, order.length}, rows.options());
  const RowConversion p{view(signal), order.of(rows, channels), order.batch, channels,
                        order.length};
  run_parts(p, checked_kernels().blocks->from_rows, order.batch);
  return signal;
}

Tensor row_fprop(const Tensor& input,
                 const Tensor& values,
                 const std::optional<Tensor>& bias,
                 const ConvPlan& plan,
                 bool relu,
                 const RowOrder& order) {
  const Geometry& g = plan.geometry;
  fill_margins(input, g.in_channels(), order, g.left, g.right, g.mode);
  Tensor output = order.empty(g.out_channels);
  BlockCorrelation p{};
  p.batch = order.batch;
  p.in_rows = order.of(input, g.in_channels());
  p.in_length = order.length;
  p.out_rows = order.of(output, g.out_channels);
  run_block_fprop(p, values, bias, plan, relu);
  return output;
}

Tensor row_dgrad(const Tensor& grad,
                 const Tensor& values,
                 const ConvPlan& plan,
                 const RowOrder& order) {
  const Geometry& g = plan.geometry;
  fill_margins(grad, g.out_channels, order, g.right, g.left, PaddingMode::zeros);
  Tensor output = order.empty(g.in_channels());
  BlockCorrelation p{};
  p.step = 1;
  p.batch = order.batch;
  p.in_rows = order.of(grad, g.out_channels);
  p.in_length = order.length;
  p.mode = PaddingMode::zeros;
  p.origin = g.left;
  p.out_rows = order.of(output, g.in_channels());
  p.rows = order.length;
  p.out_step = 1;
  run_block_dgrad(p, values, plan, 0);
  if (g.mode != PaddingMode::zeros) {
    for (const bool right : {false, true}) {
      if ((right ? g.right : g.left) > 0) {
        add_border(output, grad, values, plan, order, right);
      }
    }
  }
  return output;
}

Tensor row_wgrad(const Tensor& grad,
                 const Tensor& input,
                 const ConvPlan& plan,
                 const RowOrder& order) {
  const Geometry& g = plan.geometry;
  BlockWeightGradient p{};
  p.batch = order.batch;
  p.rows = order.length;
  p.grad_rows = order.of(grad, g.out_channels);
  p.in_rows = order.of(input, g.in_channels());
  p.in_length = order.length;
  const std::optional<Tensor> found = run_block_wgrad(p, plan);
  if (found.has_value()) {
    return *found;
  }
  return run_wgrad(from_rows(grad, g.out_channels, order), from_rows(input, g.in_channels(), order),
                   g, plan.wgrad())
      .to(at::kFloat);
}

const ConvPlan& pointwise_plan(int64_t out_channels, int64_t in_channels) {
  static std::mutex& mutex = *new std::mutex;
  static auto& plans = *new std::map<std::pair<int64_t, int64_t>, ConvPlan>;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto key = std::make_pair(out_channels, in_channels);
  auto found = plans.find(key);
  if (found == plans.end()) {
    const Geometry g{out_channels, in_channels, 1, 1, 0, 0, 1, 1, PaddingMode::zeros};
    const Tensor crow = at::arange(g.n_kernels() + 1, at::kInt);
    const Tensor col = at::zeros({g.n_kernels()}, at::kInt);
    found = plans.try_emplace(key, g, crow, col).first;
  }
  return found->second;
}

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
      return to_float(p.in.at(0, c / kBlockSize, 0) + c % kBlockSize * 2);
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
