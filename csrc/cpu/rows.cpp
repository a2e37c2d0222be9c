#include "rows.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <utility>
#include <vector>

#include "../checks.h"
#include "launch.h"
#include "plan/plan_cache.h"

namespace sparseconv {

namespace {

// Writes the rows that a convolution reads as its padding.
void fill_margins(const Tensor& tensor,
                  int64_t channels,
                  const RowOrder& order,
                  int64_t left,
                  int64_t right,
                  PaddingMode mode) {
  const Rows rows = order.of(tensor);
  for (int64_t n = 0; n < order.batch; ++n) {
    for (int64_t panel = 0; panel < panels_of(channels); ++panel) {
      char* first = rows.at(n, 2 * panel, 0);
      char* last = rows.at(n, 2 * panel, order.length - 1);
      if (mode == PaddingMode::zeros) {
        std::memset(first - left * kBlockRowBytes, 0, left * kBlockRowBytes);
        std::memset(last + kBlockRowBytes, 0, right * kBlockRowBytes);
        continue;
      }
      for (int64_t i = 1; i <= left; ++i) {
        std::memcpy(first - i * kBlockRowBytes, first, kBlockRowBytes);
      }
      for (int64_t i = 1; i <= right; ++i) {
        std::memcpy(last + i * kBlockRowBytes, last, kBlockRowBytes);
      }
    }
  }
}

// The gradients of the first and the last sample, which were copied into the padding: what the
// weights make of sums over all rows that reach the sample and its copies.
void write_borders(const Tensor& output,
                   const Tensor& grad,
                   const Tensor& weights,
                   const ConvPlan& plan,
                   const RowOrder& order) {
  const Geometry& g = plan.geometry;
  const int64_t reach = g.reach(), panels = panels_of(g.out_channels);
  const int64_t panel = reach * kBlockRowBytes;
  // A row for each tap, of the first samples of all series and then of the last ones. A tile has a
  // row of each of 16, from any of them on.
  const int64_t rows = 2 * order.batch + kTileRowCount - 1;
  const Tensor sums = at::empty({rows * panels * reach, kPanelChannels}, at::kBFloat16);
  const Tensor found =
      at::empty({panels_of(g.in_channels()) * rows, kPanelChannels}, at::kBFloat16);
  char* data = static_cast<char*>(sums.mutable_data_ptr());
  for (const bool last : {false, true}) {
    BorderSums q{order.of(grad), {data, panels * panel, panel}, order.batch, order.length, panels};
    q.count = reach;
    q.step = last ? -1 : 1;
    q.first = order.length == 1 ? 0  // which is both samples
              : last            ? order.length - 1 + g.left
                                : -g.right;
    q.out.data += last ? order.batch * panels * panel + (reach - 1) * kBlockRowBytes : 0;
    run_parts(q, checked_kernels().blocks->border_sums, order.batch * panels * reach / kRowGrain);
  }
  BlockCorrelation p{};
  p.step = panels * reach;
  p.batch = 1;
  p.in_rows = {data + (reach - 1) * kBlockRowBytes, 0, panel};
  p.out_rows = {static_cast<char*>(found.mutable_data_ptr()), 0, rows * kBlockRowBytes};
  p.mode = PaddingMode::replicate;  // so that no entry is left out
  p.rows = 2 * order.batch;
  p.out_step = 1;
  run_block_dgrad(p, weights, plan, 0);
  const Rows border = order.of(output);
  for (int64_t n = 0; n < order.batch; ++n) {
    for (int64_t i = 0; i < panels_of(g.in_channels()); ++i) {
      std::memcpy(border.at(n, 2 * i, 0), p.out_rows.at(0, 2 * i, n), kBlockRowBytes);
      std::memcpy(border.at(n, 2 * i, order.length - 1), p.out_rows.at(0, 2 * i, order.batch + n),
                  kBlockRowBytes);
    }
  }
}

// Of more than one tap, which become channels.
bool has_one_channel(const ConvPlan& plan) {
  return plan.geometry.in_channels() == 1 && plan.geometry.kernel_size > 1;
}

// Of a convolution of one channel: the sample that each tap reads, as channels; whether all samples
// are finite.
std::pair<Tensor, bool> unfolded(const Tensor& input, const Geometry& g, const RowOrder& order) {
  Tensor found = order.empty(g.kernel_size);
  const Rows from = order.of(input), to = order.of(found);
  const int64_t width = g.left + order.length + g.right;
  std::atomic<bool> finite = true;
  at::parallel_for(0, order.batch, ceil_div(kRowGrain, order.length), [&](int64_t n, int64_t end) {
    std::vector<uint16_t> padded(width);
    for (; n < end; ++n) {
      for (int64_t i = 0; i < width; ++i) {
        const int64_t position = std::clamp<int64_t>(i - g.left, 0, order.length - 1);
        std::memcpy(&padded[i], from.at(n, 0, position), sizeof(uint16_t));
        if ((padded[i] & 0x7f80) == 0x7f80) {
          finite = false;
        }
        if (position != i - g.left && g.mode == PaddingMode::zeros) {
          padded[i] = 0;
        }
      }
      for (int64_t tap = 0; tap < g.kernel_size; tap += kPanelChannels) {
        const int64_t taps = std::min(kPanelChannels, g.kernel_size - tap);
        for (int64_t r = 0; r < order.length; ++r) {
          uint16_t row[kPanelChannels] = {};
          const uint16_t* first = &padded[r + tap * g.dilation];
          if (g.dilation == 1) {
            std::memcpy(row, first, taps * sizeof(uint16_t));
          } else {
            for (int64_t c = 0; c < taps; ++c) {
              row[c] = first[c * g.dilation];
            }
          }
          std::memcpy(to.at(n, tap / kBlockSize, r), row, kBlockRowBytes);
        }
      }
    }
  });
  return {found, finite};
}

// Calls visit(active weight, its place in the dense (C_out, K)) of a convolution of one channel.
template <typename Visit>
void for_each_weight(const ConvPlan& plan, Visit visit) {
  const Geometry& g = plan.geometry;
  for (int64_t o = 0; o < g.out_channels; ++o) {
    for (int64_t e = plan.pointers()[o]; e < plan.pointers()[o + 1]; ++e) {
      visit(e, o * g.kernel_size + plan.taps()[e]);
    }
  }
}

const ConvPlan& plan_of(const Convolution& c) {
  return c.plan != nullptr ? *c.plan : pointwise_plan(c.weights.size(0), c.weights.size(1));
}

// The dense convolution of the taps of one channel as channels.
const ConvPlan& plan_of_taps(const Geometry& g) {
  return pointwise_plan(g.out_channels, g.kernel_size);
}

}  // namespace

bool fits_rows(const ConvPlan& plan) {
  return (has_one_channel(plan) ? plan_of_taps(plan.geometry) : plan).blocks() != nullptr;
}

Rows RowOrder::of(const Tensor& rows) const {
  const int64_t series = (length + 2 * margin) * kBlockRowBytes;
  return {static_cast<char*>(rows.mutable_data_ptr()) + margin * kBlockRowBytes, series,
          batch * series};
}

Tensor RowOrder::empty(int64_t channels) const {
  const int64_t rows = batch * panels_of(channels) * (length + 2 * margin);
  // A strip's last tile reads rows that no output needs.
  const Tensor all = at::empty({rows + kStripRows, kPanelChannels}, at::kBFloat16);
  Tensor found = all.narrow(0, 0, rows).view(sizes(channels));
  fill_margins(found, channels, *this, margin, margin, PaddingMode::zeros);
  return found;
}

Tensor RowOrder::readable(const Tensor& rows) const {
  const auto past = static_cast<int64_t>(rows.storage().nbytes()) -
                    (rows.storage_offset() + rows.numel()) * int64_t{sizeof(uint16_t)};
  if (past >= kStripRows * kBlockRowBytes) {
    return rows;
  }
  Tensor own = empty(rows.size(0) * kPanelChannels);
  own.copy_(rows);
  return own;
}

Tensor RowOrder::enter(const Tensor& signal) const {
  const int64_t channels = signal.size(1);
  // Of an expanded one, samples would be read one by one.
  const Tensor own = (signal.stride(2) == 0 ? signal.contiguous() : signal).to(at::kBFloat16);
  Tensor rows = empty(channels);
  const RowConversion p{view(own), of(rows), batch, channels, length};
  run_parts(p, checked_kernels().blocks->to_rows, batch);
  // Whole tiles were written, past the end of each series.
  fill_margins(rows, channels, *this, 0, kTileRowCount, PaddingMode::zeros);
  return rows;
}

Tensor RowOrder::leave(const Tensor& rows, int64_t channels) const {
  Tensor signal = at::empty({batch, channels, length}, rows.options());
  const RowConversion p{view(signal), of(rows), batch, channels, length};
  run_parts(p, checked_kernels().blocks->from_rows, batch);
  return signal;
}

Tensor RowOrder::fprop(const Tensor& input, const Convolution& c) const {
  const ConvPlan& plan = plan_of(c);
  const Geometry& g = plan.geometry;
  const auto outside = [&] {
    const Tensor cast = c.weights.to(at::kBFloat16);
    const auto own = c.bias ? std::optional(c.bias->to(at::kBFloat16)) : std::nullopt;
    return enter(best_fprop(leave(input, g.in_channels()), cast, own, plan, c.relu));
  };
  if (!fits_rows(plan)) {
    return outside();
  }
  if (has_one_channel(plan)) {
    const auto [channels, finite] = unfolded(input, g, *this);
    if (!finite) {  // inactive taps would make NaN of it
      return outside();
    }
    const Tensor weight = at::zeros({g.out_channels * g.kernel_size}, at::kFloat);
    const Tensor own = c.weights.to(at::kFloat).contiguous();
    for_each_weight(plan,
                    [to = weight.mutable_data_ptr<float>(), from = own.const_data_ptr<float>()](
                        int64_t e, int64_t at) { to[at] = from[e]; });
    return fprop(channels, {&plan_of_taps(g), weight, c.bias, {}, c.relu});
  }
  fill_margins(input, g.in_channels(), *this, g.left, g.right, g.mode);
  Tensor output = empty(g.out_channels);
  BlockCorrelation p{};
  p.batch = batch;
  p.in_rows = of(input);
  p.in_length = length;
  p.out_rows = of(output);
  run_block_fprop(p, c.weights.flatten(), c.bias, plan, c.relu);
  return c.added.defined() ? output.add_(c.added) : output;
}

Tensor RowOrder::dgrad(const Tensor& grad, const Convolution& c) const {
  const ConvPlan& plan = plan_of(c);
  const Geometry& g = plan.geometry;
  if (!fits_rows(plan) || has_one_channel(plan)) {  // seldom asked for: the gradient of the series
    const Tensor dy = leave(grad, g.out_channels);
    return enter(best_dgrad(dy, c.weights.to(at::kBFloat16), plan, length));
  }
  fill_margins(grad, g.out_channels, *this, g.right, g.left, PaddingMode::zeros);
  Tensor output = empty(g.in_channels());
  BlockCorrelation p{};
  p.step = 1;
  p.batch = batch;
  p.in_rows = of(grad);
  p.in_length = length;
  p.mode = PaddingMode::zeros;
  p.origin = g.left;
  p.out_rows = of(output);
  p.rows = length;
  p.out_step = 1;
  const Tensor weights = packed_for_dgrad(c.weights.flatten(), plan, 0);
  run_block_dgrad(p, weights, plan, 0);
  if (g.mode != PaddingMode::zeros && g.reach() > 1) {
    write_borders(output, grad, weights, plan, *this);
  }
  return output;
}

Tensor RowOrder::wgrad(const Tensor& grad, const Tensor& input, const Convolution& c) const {
  const ConvPlan& plan = plan_of(c);
  const Geometry& g = plan.geometry;
  const auto outside = [&] {
    return best_wgrad(leave(grad, g.out_channels), leave(input, g.in_channels()), plan)
        .to(at::kFloat);
  };
  if (!fits_rows(plan)) {
    return outside();
  }
  if (has_one_channel(plan)) {
    const Tensor all = wgrad(grad, unfolded(input, g, *this).first, {&plan_of_taps(g)});
    Tensor active = at::empty({plan.nnz}, at::kFloat);
    for_each_weight(plan,
                    [to = active.mutable_data_ptr<float>(), from = all.const_data_ptr<float>()](
                        int64_t e, int64_t at) { to[e] = from[at]; });
    return active;
  }
  fill_margins(input, g.in_channels(), *this, g.left, g.right, g.mode);  // others may be there
  BlockWeightGradient p{};
  p.batch = batch;
  p.rows = length;
  p.grad_rows = of(grad);
  p.in_rows = of(input);
  p.in_length = length;
  const std::optional<Tensor> found = run_block_wgrad(p, plan);
  return found.has_value() ? *found : outside();
}

}  // namespace sparseconv
