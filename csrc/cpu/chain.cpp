#include "chain.h"

#include <ATen/autocast_mode.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/threshold_backward.h>
#include <ATen/record_function.h>

#include "../checks.h"
#include "launch.h"
#include "plan/plan_cache.h"
#include "rows.h"

namespace sparseconv {

namespace {

Tensor tensor_or_none(const std::optional<Tensor>& tensor) {
  return tensor.has_value() ? *tensor : Tensor();
}

// What autocast casts to bfloat16 may be float32.
bool is_half_or_float(const Tensor& x) {
  return x.scalar_type() == at::kBFloat16 || x.scalar_type() == at::kFloat;
}

// `mixed`: of either type, whatever x has.
void check_weights_type(const Tensor& x, const Tensor& weights, const char* name, bool mixed) {
  if (mixed) {
    TORCH_CHECK_TYPE(is_half_or_float(weights) && weights.is_cpu(), "expected ", name,
                     " to be bfloat16 or float32, but got ", weights.scalar_type());
  } else {
    check_same_type(x, weights, name);
  }
}

void check_contiguous(const std::optional<Tensor>& vector,
                      const char* name,
                      const Tensor& x,
                      int64_t channels,
                      bool needed,
                      bool mixed) {
  TORCH_CHECK_VALUE(vector.has_value() || !needed, "expected ", name);
  if (vector.has_value()) {
    check_weights_type(x, *vector, name, mixed);
    check_vector(*vector, name, *vector, channels);
    TORCH_CHECK_VALUE(vector->is_contiguous(), "expected ", name, " to be contiguous");
  }
}

// Counts this batch, and returns its share in the running statistics.
double count_batch(const Chain::Statistics& kept) {
  if (!kept.counter) {
    return kept.momentum.value_or(0);
  }
  const int64_t batches = ++*kept.counter->mutable_data_ptr<int64_t>();
  kept.counter->unsafeGetTensorImpl()->bump_version();  // as its add_(1) would
  return kept.momentum.value_or(1.0 / static_cast<double>(batches));
}

}  // namespace

void Chain::Stage::check_untouched() const {
  TORCH_CHECK(kind != Kind::conv || version_of(crow, col) == version,
              "the index arrays of a pattern were modified in place, so it is invalid; clone them "
              "before a change and build a new KernelCSR");
}

void Chain::add_conv(const Tensor& crow, const Tensor& col, at::IntArrayRef geometry, bool relu) {
  const int64_t version = version_of(crow, col);
  ConvPlanPtr plan = plan_of(crow, col, geometry);
  TORCH_CHECK_VALUE(fits_lanes(plan->geometry),
                    "expected a convolution that keeps the length, of stride 1, padded with zeros "
                    "or replicated ends");
  TORCH_CHECK_VALUE(!in_rows_ || fits_rows(*plan),
                    "expected blocks of channels that share their taps");
  margin_ = std::max({margin_, plan->geometry.left, plan->geometry.right});
  stages_.push_back(
      {Kind::conv, relu, 0, false, std::move(plan), crow, col, version, geometry.vec()});
}

void Chain::add_pointwise() {
  stages_.push_back({Kind::pointwise});
}

void Chain::add_norm_relu(double eps, bool training) {
  stages_.push_back({Kind::norm_relu, false, eps, training});
}

void Chain::check(const Tensor& x,
                  const Tensors& parameters,
                  const std::vector<Statistics>& statistics) const {
  check_signal(x, "input");
  TORCH_CHECK_TYPE(in_rows_ ? is_half_or_float(x)
                            : x.scalar_type() == at::kFloat || x.scalar_type() == at::kDouble,
                   "expected another type of input, but got ", x.scalar_type());
  TORCH_CHECK_VALUE(!in_rows_ || checked_kernels().blocks != nullptr,
                    "expected kernels for blocks");
  TORCH_CHECK_VALUE(x.numel() > 0 && !stages_.empty() && statistics.size() == stages_.size(),
                    "expected an input with samples, and of each stage the statistics");
  check_parameters(x, x.size(1), parameters);  // so that they can be read below
  int64_t channels = x.size(1);
  for (size_t i = 0; i < stages_.size(); ++i) {
    const Stage& stage = stages_[i];
    stage.check_untouched();
    if (stage.kind != Kind::norm_relu) {
      channels = channels_after(i, parameters, channels);
      continue;
    }
    const Statistics& kept = statistics[i];
    std::optional<at::ScalarType> type;
    for (const auto& vector : {parameters[2 * i], parameters[2 * i + 1], kept.mean, kept.var}) {
      if (vector.has_value()) {
        type = type.value_or(vector->scalar_type());
        TORCH_CHECK_TYPE(vector->scalar_type() == *type, "expected vectors of one type");
      }
    }
    TORCH_CHECK_VALUE(stage.training ? stage.eps > 0 : stage.eps >= 0, "expected eps above 0");
    check_contiguous(kept.mean, "running_mean", x, channels, !stage.training, in_rows_);
    check_contiguous(kept.var, "running_var", x, channels, !stage.training, in_rows_);
    TORCH_CHECK_VALUE(!stage.training || x.size(0) * x.size(2) > 1,
                      "Expected more than 1 value per channel when training, got input size ",
                      x.sizes());
  }
}

void Chain::check_parameters(const Tensor& x, int64_t channels, const Tensors& parameters) const {
  TORCH_CHECK_VALUE(parameters.size() == 2 * stages_.size(), "expected two parameters of each of ",
                    stages_.size(), " stages, but got ", parameters.size());
  // Without autocast torch's modules refuse weights of another type than the input's.
  const bool casts = in_rows_ && at::autocast::is_autocast_enabled(at::kCPU);
  for (size_t i = 0; i < stages_.size(); ++i) {
    const Stage& stage = stages_[i];
    const std::optional<Tensor>& first = parameters[2 * i];
    const std::optional<Tensor>& second = parameters[2 * i + 1];
    if (stage.kind == Kind::norm_relu) {
      check_contiguous(first, "weight", x, channels, false, in_rows_);
      check_contiguous(second, "bias", x, channels, false, in_rows_);
      continue;
    }
    TORCH_CHECK_VALUE(first.has_value(), "expected weights");
    check_weights_type(x, *first, "weights", casts);
    const bool sparse = stage.kind == Kind::conv;
    const int64_t wanted = sparse
                               ? stage.plan->geometry.in_channels()
                               : (first->dim() == 3 && first->size(2) == 1 ? first->size(1) : -1);
    TORCH_CHECK_VALUE(wanted == channels, "expected stage ", i, " to take ", channels,
                      " channels, but it takes ", wanted);
    channels = sparse ? stage.plan->geometry.out_channels : first->size(0);
    TORCH_CHECK_VALUE(!in_rows_ || sparse || fits_rows(pointwise_plan(channels, wanted)),
                      "expected fewer channels of a 1x1 convolution");
    TORCH_CHECK_VALUE(!sparse || (first->dim() == 1 && first->numel() == stage.plan->nnz),
                      "expected values of shape (", sparse ? stage.plan->nnz : 0, ",), but got ",
                      first->sizes());
    check_contiguous(second, "bias", x, channels, false, casts);
  }
}

std::unique_ptr<ChainOrder> Chain::order_for(const Tensor& signal) const {
  return in_rows_ ? rows_for(signal, margin_) : lanes_for(signal);
}

int64_t Chain::channels_after(size_t i, const Tensors& parameters, int64_t channels) const {
  switch (stages_[i].kind) {
    case Kind::conv:
      return stages_[i].plan->geometry.out_channels;
    case Kind::pointwise:
      return parameters[2 * i]->size(0);
    default:
      return channels;
  }
}

Chain::Result Chain::forward(const Tensor& x,
                             const Tensors& parameters,
                             const std::vector<Statistics>& statistics,
                             bool keep) const {
  RECORD_FUNCTION("sparseconv::chain", c10::ArrayRef<const c10::IValue>{});
  const ForkGuard fork_guard;
  const at::AutoDispatchBelowADInplaceOrView below;
  const c10::impl::ExcludeDispatchKeyGuard no_casts(c10::DispatchKey::AutocastCPU);
  const std::unique_ptr<ChainOrder> order = order_for(x);
  Result result;
  Tensor now = order->enter(x);
  int64_t channels = x.size(1);
  Tensor statistics_of_batch;
  for (size_t i = 0; i < stages_.size(); ++i) {
    const Stage& stage = stages_[i];
    const std::optional<Tensor>& first = parameters[2 * i];
    const std::optional<Tensor>& second = parameters[2 * i + 1];
    if (keep) {
      result.kept.push_back(now);
    }
    switch (stage.kind) {
      case Kind::conv: {
        RECORD_FUNCTION("sparseconv::fprop", c10::ArrayRef<const c10::IValue>{});
        const bool measured = i + 1 < stages_.size() && stages_[i + 1].training;
        now = order->fprop(now, *first, second, *stage.plan, stage.relu,
                           measured ? &statistics_of_batch : nullptr);
        break;
      }
      case Kind::pointwise: {
        RECORD_FUNCTION("sparseconv::pointwise_fprop", c10::ArrayRef<const c10::IValue>{});
        now = order->pointwise_fprop(now, *first, second);
        break;
      }
      case Kind::norm_relu: {
        RECORD_FUNCTION("sparseconv::norm_relu", c10::ArrayRef<const c10::IValue>{});
        const Norm norm = {tensor_or_none(first),
                           tensor_or_none(second),
                           tensor_or_none(statistics[i].mean),
                           tensor_or_none(statistics[i].var),
                           stage.training ? count_batch(statistics[i]) : 0,
                           stage.eps,
                           stage.training};
        const NormOutput normed = order->norm_relu(now, channels, norm, statistics_of_batch, !keep);
        now = normed.output;
        statistics_of_batch = Tensor();
        if (keep) {
          result.kept.push_back(normed.mean);
          result.kept.push_back(normed.invstd);
        }
        break;
      }
    }
    channels = channels_after(i, parameters, channels);
  }
  if (keep && stages_.back().relu) {
    result.kept.push_back(now);
  }
  result.output = order->leave(now, channels);
  return result;
}

Chain::Tensors Chain::backward(const Tensor& grad,
                               const std::vector<Tensor>& kept,
                               const Tensors& parameters,
                               const std::vector<bool>& needed) const {
  RECORD_FUNCTION("sparseconv::chain_backward", c10::ArrayRef<const c10::IValue>{});
  const ForkGuard fork_guard;
  const at::AutoDispatchBelowADInplaceOrView below;
  const c10::impl::ExcludeDispatchKeyGuard no_casts(c10::DispatchKey::AutocastCPU);
  TORCH_CHECK(
      !in_rows_ || checked_kernels().blocks != nullptr,
      "expected the kernels for blocks of the forward pass, but SPARSECONV_CPU_ISA names another "
      "instruction set since");
  const std::unique_ptr<ChainOrder> order = order_for(grad);
  Tensors found(1 + parameters.size());
  // The first of x and the parameters that needs a gradient: nothing is computed before it.
  size_t until = 0;
  while (until < needed.size() && !needed[until]) {
    ++until;
  }
  Tensor now = order->enter(grad.resolve_neg());
  int64_t channels = grad.size(1);  // of the stage's output
  size_t end = kept.size();
  Tensor output = stages_.back().relu ? kept[--end] : Tensor();
  for (size_t i = stages_.size(); i-- > 0;) {
    const Stage& stage = stages_[i];
    const std::optional<Tensor>& first = parameters[2 * i];
    const std::optional<Tensor>& second = parameters[2 * i + 1];
    const bool need_first = needed[1 + 2 * i], need_second = needed[2 + 2 * i];
    const bool earlier = until < 1 + 2 * i;
    Tensor mean, invstd;
    if (stage.kind == Kind::norm_relu) {
      invstd = kept[--end];
      mean = kept[--end];
    }
    const Tensor input = kept[--end];
    switch (stage.kind) {
      case Kind::conv: {
        const ConvPlan& plan = *stage.plan;
        if (stage.relu) {
          now = at::threshold_backward(now, output, 0);
        }
        if (need_first) {
          RECORD_FUNCTION("sparseconv::wgrad", c10::ArrayRef<const c10::IValue>{});
          found[1 + 2 * i] = order->wgrad(now, input, plan);
        }
        if (need_second) {
          found[2 + 2 * i] = order->sum_of_channels(now, channels);
        }
        if (earlier) {
          RECORD_FUNCTION("sparseconv::dgrad", c10::ArrayRef<const c10::IValue>{});
          now = order->dgrad(now, *first, plan);
        }
        channels = plan.geometry.in_channels();
        break;
      }
      case Kind::pointwise:
        if (need_first) {
          RECORD_FUNCTION("sparseconv::pointwise_wgrad", c10::ArrayRef<const c10::IValue>{});
          found[1 + 2 * i] = order->pointwise_wgrad(now, input, *first);
        }
        if (need_second) {
          found[2 + 2 * i] = order->sum_of_channels(now, channels);
        }
        if (earlier) {
          RECORD_FUNCTION("sparseconv::pointwise_dgrad", c10::ArrayRef<const c10::IValue>{});
          now = order->pointwise_dgrad(now, *first);
        }
        channels = first->size(1);
        break;
      case Kind::norm_relu: {
        RECORD_FUNCTION("sparseconv::norm_relu_gradient", c10::ArrayRef<const c10::IValue>{});
        const Norm norm = {
            tensor_or_none(first), tensor_or_none(second), {}, {}, 0, stage.eps, true};
        const NormGradient gradient =
            order->norm_relu_gradient(now, input, channels, norm, mean, invstd);
        if (need_first) {
          found[1 + 2 * i] = gradient.weight;
        }
        if (need_second) {
          found[2 + 2 * i] = gradient.bias;
        }
        break;
      }
    }
    if (!earlier) {
      break;
    }
    output = input;
  }
  if (needed[0]) {
    found[0] = order->leave(now, channels);
  }
  return found;
}

}  // namespace sparseconv
