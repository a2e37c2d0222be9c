// From a bank of random kernels to the features of series.

#include "rocket.h"

#include <ATen/ops/empty.h>
#include <algorithm>
#include <limits>

#include "../../checks.h"
#include "../launch.h"

namespace sparseconv {
namespace {

// Multiply-adds that are worth one more thread.
constexpr int64_t kShare = 1024 * 1024;
// What a multiply-add costs with positions as lanes, whose loads are not aligned and serve one
// output each; a column's costs 1 (measured: about 6 kernels in the lanes cost the same).
constexpr double kPositionsCost = 2.5;
constexpr int64_t kMaxLanes = 16;          // of float, on any instruction set
constexpr int64_t kMostNumbers = 1 << 30;  // of a bank's array: int32 counts two of them together

// Dense float32 on the CPU, in the order of its indices.
bool is_array(const Tensor& x, int64_t dims) {
  return x.layout() == at::kStrided && x.is_cpu() && x.scalar_type() == at::kFloat &&
         x.dim() == dims && x.is_contiguous() && !x.is_neg();
}

SeriesBatch batch_of(const Tensor& x, const Tensor& out, int64_t channels, int64_t n_features) {
  TORCH_CHECK_VALUE(is_array(x, 3),
                    "expected contiguous float32 series (n_cases, n_channels, n_timepoints)");
  check_memory(x, "series");
  TORCH_CHECK_VALUE(x.size(1) == channels, "expected series of ", channels, " channels, but got ",
                    x.size(1));
  TORCH_CHECK_VALUE(is_array(out, 2) && out.size(0) == x.size(0) && out.size(1) == n_features,
                    "expected out to be contiguous float32 (", x.size(0), ", ", n_features, ")");
  check_memory(out, "out");
  return {x.const_data_ptr<float>(),     x.size(0), x.size(1), x.size(2),
          out.mutable_data_ptr<float>(), n_features};
}

template <typename T>
std::vector<T> values_of(const Tensor& tensor, at::ScalarType type, const char* name) {
  TORCH_CHECK_VALUE(tensor.layout() == at::kStrided && tensor.is_cpu() && tensor.dim() == 1 &&
                        tensor.scalar_type() == type,
                    name, " must be a dense vector of ", toString(type), " on the CPU");
  TORCH_CHECK_VALUE(tensor.numel() <= kMostNumbers, name, " must have at most ", kMostNumbers,
                    " elements, but has ", tensor.numel());
  check_memory(tensor, name);
  const Tensor plain = tensor.resolve_neg().contiguous();
  const T* data = plain.const_data_ptr<T>();
  return {data, data + plain.numel()};
}

std::vector<int32_t> integers(const Tensor& tensor, const char* name) {
  return values_of<int32_t>(tensor, at::kInt, name);
}
std::vector<float> floats(const Tensor& tensor, const char* name) {
  return values_of<float>(tensor, at::kFloat, name);
}

void check_shape(int64_t channels, int64_t length) {
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  TORCH_CHECK_VALUE(channels >= 1 && channels <= kMost && length >= 1 && length <= kMost,
                    "expected series of 1 to ", kMost, " channels and samples, but got ", channels,
                    " and ", length);
}

// `cost`: multiply-adds.
template <typename Problem>
void run(const Problem& problem,
         void (*kernel)(const Problem&, int64_t, int64_t, void*),
         int64_t cost) {
  const ForkGuard fork_guard;
  if (problem.series.batch > 0) {  // without, series may have any length, and scratch any size
    run_parts(problem, kernel, cost / kShare);
  }
}

}  // namespace

int64_t scratch_bytes(const RocketFeatures& p) {
  const int64_t features = ceil_div(p.series.n_features, kMaxLanes) * kMaxLanes * kMaxLanes;
  const int64_t rows = p.series.channels * (p.series.length + 2 * kRocketMargin) * kMaxLanes;
  return (features + rows) * static_cast<int64_t>(sizeof(float));
}

int64_t scratch_bytes(const MiniRocketFeatures& p) {
  const int64_t plane = p.series.length + 8 * p.max_dilation + 4;  // and vectors behind the end
  const int64_t rows = p.series.channels * (2 * plane + kMiniTile) + kMiniTile;
  return (rows + p.series.n_features) * kMaxLanes * static_cast<int64_t>(sizeof(float));
}

RocketPlan::RocketPlan(const Tensor& length,
                       const Tensor& dilation,
                       const Tensor& padding,
                       const Tensor& bias,
                       const Tensor& n_channels,
                       const Tensor& channels,
                       const Tensor& weights,
                       int64_t series_channels,
                       int64_t series_length)
    : series_channels_(series_channels), series_length_(series_length) {
  check_shape(series_channels, series_length);
  const auto lengths = integers(length, "length"), dilations = integers(dilation, "dilation");
  const auto paddings = integers(padding, "padding"), counts = integers(n_channels, "n_channels");
  const auto biases = floats(bias, "bias"), given = floats(weights, "weights");
  const auto numbers = integers(channels, "channels");
  const size_t n = lengths.size();
  TORCH_CHECK_VALUE(
      dilations.size() == n && paddings.size() == n && counts.size() == n && biases.size() == n,
      "expected dilations, paddings, biases and n_channels of the size of lengths");
  size_t weight = 0, channel = 0;
  std::vector<size_t> first_weight(n);
  for (size_t i = 0; i < n; ++i) {
    const int64_t reach = (int64_t{lengths[i]} - 1) * dilations[i];
    TORCH_CHECK_VALUE(lengths[i] >= 1 && lengths[i] <= kRocketTaps && dilations[i] >= 1 &&
                          paddings[i] >= 0 && paddings[i] <= reach && reach < series_length &&
                          counts[i] >= 1 && counts[i] <= series_channels &&
                          counts[i] <= kRocketTaps,
                      "kernel ", i, " does not fit series of ", series_channels, " channels and ",
                      series_length, " samples");
    kernels_.push_back({lengths[i], dilations[i], paddings[i], counts[i], 0,
                        static_cast<int32_t>(channel), static_cast<int32_t>(i)});
    first_weight[i] = weight;
    weight += static_cast<size_t>(lengths[i]) * counts[i];
    channel += counts[i];
    work_ +=
        static_cast<int64_t>(lengths[i]) * counts[i] * (series_length + 2 * paddings[i] - reach);
  }
  TORCH_CHECK_VALUE(n > 0 && weight == given.size() && channel == numbers.size(), "expected ",
                    weight, " weights and ", channel,
                    " channels of at least one "
                    "kernel, but got ",
                    given.size(), " and ", numbers.size());
  for (const int32_t c : numbers) {
    TORCH_CHECK_VALUE(c >= 0 && c < series_channels, "channel ", c, " of ", series_channels);
  }
  std::stable_sort(kernels_.begin(), kernels_.end(), [](const auto& a, const auto& b) {
    return std::tie(a.dilation, a.length, a.padding, a.n_channels) <
           std::tie(b.dilation, b.length, b.padding, b.n_channels);
  });
  for (RocketKernel& k : kernels_) {  // from [channel][tap] to [tap][channel]
    const float* w = given.data() + first_weight[k.kernel];
    const int32_t* first = numbers.data() + k.channels;
    k.weights = static_cast<int32_t>(weights_.size());
    k.channels = static_cast<int32_t>(channels_.size());
    channels_.insert(channels_.end(), first, first + k.n_channels);
    weights_.push_back(biases[k.kernel]);
    for (int32_t j = 0; j < k.length; ++j) {
      for (int32_t c = 0; c < k.n_channels; ++c) {
        weights_.push_back(w[c * k.length + j]);
      }
    }
  }
}

std::shared_ptr<const RocketPlan::Lanes> RocketPlan::lanes(int64_t width) {
  const std::lock_guard<std::mutex> guard(packing_);
  if (lanes_ != nullptr && lanes_->width == width) {
    return lanes_;
  }
  auto made = std::make_shared<Lanes>(Lanes{width, {}, 0, {}});
  std::vector<float> packed;
  for (size_t i = 0, end; i < kernels_.size(); i = end) {
    end = i + 1;
    while (end < kernels_.size() && end < i + width && alike(kernels_[i], kernels_[end])) {
      ++end;
    }
    const double by_positions = kPositionsCost * static_cast<double>(end - i) / width;
    const bool columns = series_channels_ == 1 && have_columns(kernels_[i]) && by_positions > 1;
    made->cost += columns ? 1 : by_positions;
    made->groups.push_back({static_cast<int32_t>(i), static_cast<int32_t>(end - i),
                            columns ? static_cast<int64_t>(packed.size()) : -1});
    for (int32_t row = 0; columns && row < 1 + kernels_[i].length; ++row) {
      for (size_t q = i; q < i + width; ++q) {
        const RocketKernel& k = kernels_[std::min(q, end - 1)];
        packed.push_back(weights_[k.weights + row]);
      }
    }
  }
  made->weights = at::empty({static_cast<int64_t>(packed.size())}, at::kFloat);
  std::copy(packed.begin(), packed.end(), made->weights.mutable_data_ptr<float>());
  lanes_ = made;
  return made;
}

void RocketPlan::features(const Tensor& x, const Tensor& out) {
  RocketFeatures p{};
  p.series = batch_of(x, out, series_channels_, 2 * static_cast<int64_t>(kernels_.size()));
  TORCH_CHECK_VALUE(x.size(2) == series_length_, "expected series of ", series_length_,
                    " samples, but got ", x.size(2));
  const KernelTable& table = checked_kernels();
  const auto packed = lanes(table.lanes);
  p.kernels = kernels_.data();
  p.n_kernels = static_cast<int64_t>(kernels_.size());
  p.weights = weights_.data();
  p.channels = channels_.data();
  p.lanes = packed->groups.data();
  p.n_lanes = static_cast<int64_t>(packed->groups.size());
  p.lane_weights = packed->weights.const_data_ptr<float>();
  p.single_cost = packed->cost;
  run(p, table.rocket, work_ * x.size(0));
}

MiniRocketPlan::MiniRocketPlan(const Tensor& taps,
                               const Tensor& dilation,
                               const Tensor& padded,
                               const Tensor& n_biases,
                               const Tensor& biases,
                               const Tensor& n_channels,
                               const Tensor& channels,
                               int64_t series_channels,
                               int64_t series_length)
    : channels_(integers(channels, "channels")),
      biases_(floats(biases, "biases")),
      series_channels_(series_channels),
      series_length_(series_length) {
  check_shape(series_channels, series_length);
  const auto numbers = integers(taps, "taps"), dilations = integers(dilation, "dilation");
  const auto padding = integers(padded, "padded"), counts = integers(n_biases, "n_biases");
  const auto used = integers(n_channels, "n_channels");
  const size_t n = numbers.size();
  TORCH_CHECK_VALUE(
      dilations.size() == n && padding.size() == n && counts.size() == n && used.size() == n,
      "expected dilations, paddings, n_biases and n_channels of the size of taps");
  std::vector<std::array<int32_t, 3>> triples;
  for (int32_t a = 0; a < 9; ++a) {
    for (int32_t b = a + 1; b < 9; ++b) {
      for (int32_t c = b + 1; c < 9; ++c) {
        triples.push_back({a, b, c});
      }
    }
  }
  int64_t bias = 0, channel = 0;
  for (size_t i = 0; i < n; ++i) {
    TORCH_CHECK_VALUE(numbers[i] >= 0 && numbers[i] < static_cast<int32_t>(triples.size()) &&
                          dilations[i] >= 1 && 8 * int64_t{dilations[i]} < series_length &&
                          (padding[i] == 0 || padding[i] == 1) && counts[i] >= 1 && used[i] >= 1 &&
                          used[i] <= series_channels &&
                          (i == 0 || dilations[i] >= dilations[i - 1]),
                      "kernel ", i, " does not fit series of ", series_channels, " channels and ",
                      series_length, " samples, or dilations do not ascend");
    const auto& t = triples[numbers[i]];
    kernels_.push_back({{t[0], t[1], t[2]},
                        dilations[i],
                        padding[i],
                        used[i],
                        static_cast<int32_t>(channel),
                        static_cast<int32_t>(bias),
                        counts[i]});
    bias += counts[i];
    channel += used[i];
  }
  TORCH_CHECK_VALUE(n > 0 && bias == static_cast<int64_t>(biases_.size()) &&
                        channel == static_cast<int64_t>(channels_.size()),
                    "expected ", bias, " biases and ", channel,
                    " channels of at least one kernel, "
                    "but got ",
                    biases_.size(), " and ", channels_.size());
  for (const int32_t c : channels_) {
    TORCH_CHECK_VALUE(c >= 0 && c < series_channels, "channel ", c, " of ", series_channels);
  }
}

void MiniRocketPlan::features(const Tensor& x, const Tensor& out) const {
  MiniRocketFeatures p{};
  p.series = batch_of(x, out, series_channels_, static_cast<int64_t>(biases_.size()));
  TORCH_CHECK_VALUE(x.size(2) == series_length_, "expected series of ", series_length_,
                    " samples, but got ", x.size(2));
  p.kernels = kernels_.data();
  p.n_kernels = static_cast<int64_t>(kernels_.size());
  p.channels = channels_.data();
  p.biases = biases_.data();
  p.max_dilation = kernels_.back().dilation;
  run(p, checked_kernels().minirocket,
      (p.series.n_features + 4 * p.n_kernels) * series_length_ * x.size(0));
}

}  // namespace sparseconv
