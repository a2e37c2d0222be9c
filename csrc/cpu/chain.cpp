#include "chain.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/threshold_backward.h>
#include <ATen/record_function.h>

#include "../checks.h"
#include "lanes.h"
#include "launch.h"
#include "plan/plan_cache.h"

namespace sparseconv {

namespace {

Tensor tensor_or_none(const std::optional<Tensor>& tensor) {
  return tensor.has_value() ? *tensor : Tensor();
}

void check_contiguous(const std::optional<Tensor>& vector,
                      const char* name,
                      const Tensor& x,
                      int64_t channels,
                      bool needed) {
  TORCH_CHECK_VALUE(vector.has_value() || !needed, "expected ", name);
  if (vector.has_value()) {
    check_vector(*vector, name, x, channels);
    TORCH_CHECK_VALUE(vector->is_contiguous(), "expected ", name, " to be contiguous");
  }
}

// 1 where a sample is, 0 where the order is idle: (1, groups, rows, lanes).
Tensor samples(const LaneOrder& order, const at::TensorOptions& options) {
  return to_lanes(at::ones({order.batch, 1, order.length}, options), order);
}

// Idle positions hold zeros, of which weights that are not finite have made NaN.
void keep_idle_zero(Tensor& lanes,
                    const LaneOrder& order,
                    const Tensor& weight,
                    const std::optional<Tensor>& bias) {
  if (!is_finite(weight) || (bias && !is_finite(*bias))) {
    lanes.masked_fill_(samples(order, lanes.options()).eq(0), 0);
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
  TORCH_CHECK_TYPE(x.scalar_type() == at::kFloat || x.scalar_type() == at::kDouble,
                   "expected float32 or float64, but got ", x.scalar_type());
  TORCH_CHECK_VALUE(x.numel() > 0 && !stages_.empty() && statistics.size() == stages_.size(),
                    "expected an input with samples, and of each stage the statistics");
  check_parameters(x, x.size(1), parameters);  // so that they can be read below
  int64_t channels = x.size(1);
  for (size_t i = 0; i < stages_.size(); ++i) {
    const Stage& stage = stages_[i];
    stage.check_untouched();
    if (stage.kind != Kind::norm_relu) {
      channels =
          stage.kind == Kind::conv ? stage.plan->geometry.out_channels : parameters[2 * i]->size(0);
      continue;
    }
    const Statistics& kept = statistics[i];
    TORCH_CHECK_VALUE(stage.training ? stage.eps > 0 : stage.eps >= 0, "expected eps above 0");
    check_contiguous(kept.mean, "running_mean", x, channels, !stage.training);
    check_contiguous(kept.var, "running_var", x, channels, !stage.training);
    TORCH_CHECK_VALUE(!stage.training || x.size(0) * x.size(2) > 1,
                      "Expected more than 1 value per channel when training, got input size ",
                      x.sizes());
  }
}

void Chain::check_parameters(const Tensor& x, int64_t channels, const Tensors& parameters) const {
  TORCH_CHECK_VALUE(parameters.size() == 2 * stages_.size(), "expected two parameters of each of ",
                    stages_.size(), " stages, but got ", parameters.size());
  for (size_t i = 0; i < stages_.size(); ++i) {
    const Stage& stage = stages_[i];
    const std::optional<Tensor>& first = parameters[2 * i];
    const std::optional<Tensor>& second = parameters[2 * i + 1];
    if (stage.kind == Kind::norm_relu) {
      check_contiguous(first, "weight", x, channels, false);
      check_contiguous(second, "bias", x, channels, false);
      continue;
    }
    TORCH_CHECK_VALUE(first.has_value(), "expected weights");
    check_same_type(x, *first, "weights");
    const bool sparse = stage.kind == Kind::conv;
    const int64_t wanted = sparse
                               ? stage.plan->geometry.in_channels()
                               : (first->dim() == 3 && first->size(2) == 1 ? first->size(1) : -1);
    TORCH_CHECK_VALUE(wanted == channels, "expected stage ", i, " to take ", channels,
                      " channels, but it takes ", wanted);
    channels = sparse ? stage.plan->geometry.out_channels : first->size(0);
    TORCH_CHECK_VALUE(!sparse || (first->dim() == 1 && first->numel() == stage.plan->nnz),
                      "expected values of shape (", sparse ? stage.plan->nnz : 0, ",), but got ",
                      first->sizes());
    check_contiguous(second, "bias", x, channels, false);
  }
}

Chain::Result Chain::forward(const Tensor& x,
                             const Tensors& parameters,
                             const std::vector<Statistics>& statistics,
                             bool keep) const {
  RECORD_FUNCTION("sparseconv::chain", c10::ArrayRef<const c10::IValue>{});
  const ForkGuard fork_guard;
  const at::AutoDispatchBelowADInplaceOrView below;
  const LaneOrder order = lane_order(x.size(0), x.size(2), lanes_of(x));
  Result result;
  Tensor now = to_lanes(x, order);
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
        now = run_fprop(now, *first, second, stage.plan->geometry, stage.plan->fprop(), stage.relu,
                        &order);
        break;
      }
      case Kind::pointwise: {
        RECORD_FUNCTION("sparseconv::pointwise_fprop", c10::ArrayRef<const c10::IValue>{});
        now = pointwise_fprop(now, *first);
        if (second) {
          now.addcmul_(samples(order, x.options()), second->view({-1, 1, 1, 1}));
        }
        keep_idle_zero(now, order, *first, second);
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
        Tensor mean, invstd;
        std::tie(now, mean, invstd) = norm_relu(now, order, norm, !keep);
        if (keep) {
          result.kept.push_back(mean);
          result.kept.push_back(invstd);
        }
        break;
      }
    }
  }
  if (keep && stages_.back().relu) {
    result.kept.push_back(now);
  }
  result.output = from_lanes(now, order);
  return result;
}

Chain::Tensors Chain::backward(const Tensor& grad,
                               const std::vector<Tensor>& kept,
                               const Tensors& parameters,
                               const std::vector<bool>& needed) const {
  RECORD_FUNCTION("sparseconv::chain_backward", c10::ArrayRef<const c10::IValue>{});
  const ForkGuard fork_guard;
  const at::AutoDispatchBelowADInplaceOrView below;
  const LaneOrder order = lane_order(grad.size(0), grad.size(2), lanes_of(grad));
  Tensors found(1 + parameters.size());
  // The first of x and the parameters that needs a gradient: nothing is computed before it.
  size_t until = 0;
  while (until < needed.size() && !needed[until]) {
    ++until;
  }
  Tensor now = to_lanes(grad.resolve_neg(), order);
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
          found[1 + 2 * i] = run_wgrad(now, input, plan.geometry, plan.wgrad(), &order);
        }
        if (need_second) {
          found[2 + 2 * i] = sum_of_channels(now);
        }
        if (earlier) {
          RECORD_FUNCTION("sparseconv::dgrad", c10::ArrayRef<const c10::IValue>{});
          now = run_dgrad(now, *first, plan.geometry, plan.dgrad(), order.length, &order);
        }
        break;
      }
      case Kind::pointwise:
        if (need_first) {
          RECORD_FUNCTION("sparseconv::pointwise_wgrad", c10::ArrayRef<const c10::IValue>{});
          found[1 + 2 * i] = pointwise_wgrad(now, input);
        }
        if (need_second) {
          found[2 + 2 * i] = sum_of_channels(now);
        }
        if (earlier) {
          RECORD_FUNCTION("sparseconv::pointwise_dgrad", c10::ArrayRef<const c10::IValue>{});
          now = pointwise_dgrad(now, *first);
          keep_idle_zero(now, order, *first, std::nullopt);
        }
        break;
      case Kind::norm_relu: {
        RECORD_FUNCTION("sparseconv::norm_relu_gradient", c10::ArrayRef<const c10::IValue>{});
        const Norm norm = {
            tensor_or_none(first), tensor_or_none(second), {}, {}, 0, stage.eps, true};
        Tensor weight, bias;
        std::tie(weight, bias) = norm_relu_gradient(now, input, order, norm, mean, invstd);
        if (need_first) {
          found[1 + 2 * i] = weight;
        }
        if (need_second) {
          found[2 + 2 * i] = bias;
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
    found[0] = from_lanes(now, order);
  }
  return found;
}

}  // namespace sparseconv
