// From a bank of random kernels to the features of series.

#include "rocket.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <array>
#include <limits>
#include <tuple>

#include "../../checks.h"
#include "../launch.h"

namespace sparseconv {
namespace {

// Multiply-adds that are worth one more thread.
constexpr int64_t kShare = 1024 * 1024;
// What a multiply-add costs with positions as lanes, whose loads are not
// aligned and serve one output each; a column's costs 1 (measured: about 6
// kernels in the lanes cost the same).
constexpr double kPositionsCost = 2.5;
constexpr int64_t kMostNumbers = 1 << 30;  // of a bank's array: int32 counts two of them together

// Dense float32 on the CPU, in the order of its indices.
bool is_array(const Tensor& x, int64_t dims) {
  return x.layout() == at::kStrided && x.is_cpu() && x.scalar_type() == at::kFloat &&
         x.dim() == dims && x.is_contiguous() && !x.is_neg();
}

SeriesBatch batch_of(const Tensor& x,
                     const Tensor& out,
                     int64_t channels,
                     int64_t length,
                     int64_t n_features) {
  TORCH_CHECK_VALUE(is_array(x, 3),
                    "expected contiguous float32 series (n_cases, n_channels, n_timepoints)");
  check_memory(x, "series");
  TORCH_CHECK_VALUE(x.size(1) == channels && x.size(2) == length, "expected series of ", channels,
                    " channels and ", length, " samples, but got ", x.size(1), " and ", x.size(2));
  TORCH_CHECK_VALUE(is_array(out, 2) && out.size(0) == x.size(0) && out.size(1) == n_features,
                    "expected out to be contiguous float32 (", x.size(0), ", ", n_features, ")");
  check_memory(out, "out");
  return {x.const_data_ptr<float>(),     x.size(0), x.size(1), x.size(2),
          out.mutable_data_ptr<float>(), n_features};
}

// The numbers of an array: `wanted` ones, or any number of them.
template <typename T>
std::vector<T> values_of(const KernelBank& bank, const char* name, int64_t wanted = -1) {
  const auto found = bank.arrays.find(name);
  TORCH_CHECK_VALUE(found != bank.arrays.end(), "expected an array ", name);
  const Tensor& tensor = found->second;
  constexpr auto kType = c10::CppTypeToScalarType<T>::value;
  TORCH_CHECK_VALUE(tensor.layout() == at::kStrided && tensor.is_cpu() && tensor.dim() == 1 &&
                        tensor.scalar_type() == kType,
                    name, " must be a dense vector of ", toString(kType), " on the CPU");
  const int64_t n = tensor.numel();
  TORCH_CHECK_VALUE(n <= kMostNumbers, name, " must have at most ", kMostNumbers,
                    " elements, but has ", n);
  TORCH_CHECK_VALUE(n > 0 && (wanted < 0 || n == wanted), "expected ", name,
                    " of at least one kernel, and of all, but got ", n, " elements");
  check_memory(tensor, name);
  const Tensor plain = tensor.resolve_neg().contiguous();
  const T* data = plain.const_data_ptr<T>();
  return {data, data + n};
}

void check_shape(const KernelBank& bank) {
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  const int64_t channels = bank.series_channels, length = bank.series_length;
  TORCH_CHECK_VALUE(channels >= 1 && channels <= kMost && length >= 1 && length <= kMost,
                    "expected series of 1 to ", kMost, " channels and samples, but got ", channels,
                    " and ", length);
}

void check_kernel(bool fits, int64_t kernel, const KernelBank& bank) {
  TORCH_CHECK_VALUE(fits, "kernel ", kernel, " does not fit series of ", bank.series_channels,
                    " channels and ", bank.series_length,
                    " samples, or the dilations do not ascend");
}

std::vector<int32_t> channels_of(const KernelBank& bank, int64_t wanted) {
  auto channels = values_of<int32_t>(bank, "channels", wanted);
  for (const int32_t c : channels) {
    TORCH_CHECK_VALUE(c >= 0 && c < bank.series_channels, "channel ", c, " of ",
                      bank.series_channels);
  }
  return channels;
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

RocketPlan::RocketPlan(const KernelBank& bank)
    : series_channels_(bank.series_channels), series_length_(bank.series_length) {
  check_shape(bank);
  const auto lengths = values_of<int32_t>(bank, "length");
  const auto n = static_cast<int64_t>(lengths.size());
  const auto of_each = [&](const char* name) { return values_of<int32_t>(bank, name, n); };
  const auto dilations = of_each("dilation"), paddings = of_each("padding");
  const auto counts = of_each("n_channels");
  int64_t weight = 0, channel = 0;
  std::vector<int64_t> first_weight(n);
  for (int64_t i = 0; i < n; ++i) {
    const int64_t reach = (int64_t{lengths[i]} - 1) * dilations[i];
    check_kernel(lengths[i] >= 1 && lengths[i] <= kRocketTaps && dilations[i] >= 1 &&
                     paddings[i] >= 0 && paddings[i] <= reach && reach < series_length_ &&
                     counts[i] >= 1 && counts[i] <= series_channels_ && counts[i] <= kRocketTaps,
                 i, bank);
    kernels_.push_back({lengths[i], dilations[i], paddings[i], counts[i], 0,
                        static_cast<int32_t>(channel), static_cast<int32_t>(i)});
    first_weight[i] = weight;
    weight += int64_t{lengths[i]} * counts[i];
    channel += counts[i];
    work_ += int64_t{lengths[i]} * counts[i] * (series_length_ + 2 * paddings[i] - reach);
  }
  const auto biases = values_of<float>(bank, "bias", n);
  const auto given = values_of<float>(bank, "weights", weight);
  const auto numbers = channels_of(bank, channel);
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
  p.series =
      batch_of(x, out, series_channels_, series_length_, 2 * static_cast<int64_t>(kernels_.size()));
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

MiniRocketPlan::MiniRocketPlan(const KernelBank& bank)
    : series_channels_(bank.series_channels), series_length_(bank.series_length) {
  check_shape(bank);
  const auto numbers = values_of<int32_t>(bank, "taps");
  const auto n = static_cast<int64_t>(numbers.size());
  const auto of_each = [&](const char* name) { return values_of<int32_t>(bank, name, n); };
  const auto dilations = of_each("dilation"), padding = of_each("padded");
  const auto counts = of_each("n_biases"), used = of_each("n_channels");
  std::vector<std::array<int32_t, 3>> triples;
  for (int32_t a = 0; a < 9; ++a) {
    for (int32_t b = a + 1; b < 9; ++b) {
      for (int32_t c = b + 1; c < 9; ++c) {
        triples.push_back({a, b, c});
      }
    }
  }
  int64_t bias = 0, channel = 0;
  for (int64_t i = 0; i < n; ++i) {
    check_kernel(numbers[i] >= 0 && numbers[i] < static_cast<int32_t>(triples.size()) &&
                     dilations[i] >= 1 && 8 * int64_t{dilations[i]} < series_length_ &&
                     (padding[i] == 0 || padding[i] == 1) && counts[i] >= 1 && used[i] >= 1 &&
                     used[i] <= series_channels_ && (i == 0 || dilations[i] >= dilations[i - 1]),
                 i, bank);
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
  biases_ = values_of<float>(bank, "biases", bias);
  channels_ = channels_of(bank, channel);
}

void MiniRocketPlan::features(const Tensor& x, const Tensor& out) const {
  MiniRocketFeatures p{};
  p.series =
      batch_of(x, out, series_channels_, series_length_, static_cast<int64_t>(biases_.size()));
  p.kernels = kernels_.data();
  p.n_kernels = static_cast<int64_t>(kernels_.size());
  p.channels = channels_.data();
  p.biases = biases_.data();
  p.max_dilation = kernels_.back().dilation;
  run(p, checked_kernels().minirocket,
      (p.series.n_features + 4 * p.n_kernels) * series_length_ * x.size(0));
}

}  // namespace sparseconv
