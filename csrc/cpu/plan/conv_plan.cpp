#include "conv_plan.h"

#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/tensor.h>

#include <limits>

#include "../../checks.h"

namespace sparseconv {

namespace {

std::vector<int32_t> copied(const Tensor& indices) {
  const int32_t* data = indices.const_data_ptr<int32_t>();
  return {data, data + indices.numel()};
}

}  // namespace

ConvPlan::ConvPlan(const Geometry& geometry, const Tensor& crow, const Tensor& col, bool apart)
    : geometry(geometry),
      nnz((check_pattern(crow, col, geometry.n_kernels(), geometry.kernel_size), col.numel())),
      apart_(apart),
      crow_(copied(crow)),
      col_(copied(col)),
      fprop_(fprop_plan(geometry, crow_.data(), col_.data(), apart)),
      nbytes_(bytes_of(crow_, col_) + fprop_.entries.nbytes()) {}

const DgradPlan& ConvPlan::dgrad() const {
  std::call_once(dgrad_once_, [this] {
    // It has pointers for each phase of the stride.
    TORCH_CHECK_VALUE(geometry.stride <= std::numeric_limits<int32_t>::max() / geometry.n_kernels(),
                      "stride x kernels must be below 2**31, but got ", geometry.stride, " x ",
                      geometry.n_kernels());
    dgrad_ = dgrad_plan(geometry, crow_.data(), col_.data(), apart_);
    nbytes_ += bytes_of(dgrad_.index);
    for (const CorrelationPlan& phase : dgrad_.phases) {
      nbytes_ += phase.entries.nbytes();
    }
  });
  return dgrad_;
}

const WgradPlan& ConvPlan::wgrad() const {
  std::call_once(wgrad_once_, [this] {
    wgrad_ = wgrad_plan(geometry, crow_.data(), col_.data(), apart_);
    nbytes_ += bytes_of(wgrad_.rows, wgrad_.batches, wgrad_.block_starts, wgrad_.row_starts);
  });
  return wgrad_;
}

const BlockPlan* ConvPlan::blocks() const {
  std::call_once(blocks_once_, [this] {
    blocks_ = block_plan(geometry, crow_.data(), col_.data());
    nbytes_ += blocks_.has_value() ? blocks_->nbytes() : 0;
  });
  return blocks_.has_value() ? &*blocks_ : nullptr;
}

ConvPlan::~ConvPlan() {
  delete fewer_taps_.load();
  delete in_lanes_.load();
  delete next_;
}

const ConvPlan* ConvPlan::fewer_taps(int64_t length) const {
  Geometry g = geometry;
  if (g.mode != PaddingMode::zeros) {
    return nullptr;
  }
  // One tap stays, and no padding becomes negative.
  const int64_t last = (g.output_length(length) - 1) * g.stride;
  int64_t first = 0;
  for (; g.left > last && g.left >= g.dilation && g.kernel_size > 1; g.left -= g.dilation) {
    --g.kernel_size;
    ++first;
  }
  for (; g.reach() > length + g.left && g.right >= g.dilation && g.kernel_size > 1;
       g.right -= g.dilation) {
    --g.kernel_size;
  }
  if (g.kernel_size == geometry.kernel_size) {
    return nullptr;
  }
  // The longer the series, the more taps stay on both sides: their number says which they are.
  for (const ConvPlan* known = fewer_taps_; known != nullptr; known = known->next_) {
    if (known->geometry.kernel_size == g.kernel_size) {
      return known;
    }
  }
  const Tensor taps = at::tensor(col_).sub_(first);
  const Tensor stays = taps.ge(0).logical_and_(taps.lt(g.kernel_size));
  const Tensor before = at::constant_pad_nd(stays.cumsum(0, at::kInt), {1, 0});
  const Tensor places = stays.nonzero().squeeze(1);
  auto* made = new ConvPlan(g, before.index_select(0, at::tensor(crow_)),
                            taps.index_select(0, places), apart_);
  made->kept = places;
  made->next_ = fewer_taps_;
  while (!fewer_taps_.compare_exchange_weak(made->next_, made)) {  // twice the same does no harm
  }
  return made;
}

const ConvPlan& ConvPlan::in_lanes() const {
  constexpr int64_t kFewTaps = 3;
  if (fprop_.layout.apart == 1 || geometry.kernel_size > kFewTaps ||
      geometry.mode != PaddingMode::zeros) {
    return *this;
  }
  const ConvPlan* known = in_lanes_;
  if (known == nullptr) {
    const auto* made = new ConvPlan(geometry, at::tensor(crow_), at::tensor(col_), false);
    if (in_lanes_.compare_exchange_strong(known, made)) {
      return *made;
    }
    delete made;  // another thread was first
  }
  return *known;
}

int64_t ConvPlan::nbytes() const {
  const auto of = [](const ConvPlan* plan) { return plan == nullptr ? 0 : plan->nbytes(); };
  return nbytes_ + (kept.defined() ? static_cast<int64_t>(kept.nbytes()) : 0) + of(fewer_taps_) +
         of(in_lanes_) + of(next_);
}

}  // namespace sparseconv
