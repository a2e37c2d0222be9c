// The plans of a sparse convolution: what its kernels read of a pattern, besides the weights.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/intrusive_ptr.h>

#include <atomic>
#include <mutex>
#include <vector>

#include "blocks.h"
#include "indices.h"

namespace sparseconv {

// The plans of a pattern and geometry: made and checked once, never changed, and independent of the
// tensors that they were made of.
class ConvPlan : public c10::intrusive_ptr_target {
 public:
  // Throws ValueError or TypeError if crow and col are not those of a pattern of this geometry.
  ConvPlan(const Geometry& geometry,
           const at::Tensor& crow,
           const at::Tensor& col,
           bool apart = true);
  ~ConvPlan() override;

  const Geometry geometry;
  const int64_t nnz;
  const CorrelationPlan& fprop() const { return fprop_; }
  const DgradPlan& dgrad() const;  // made when first asked for, as is the next
  const WgradPlan& wgrad() const;
  // Null if the pattern is not one of blocks.
  const BlockPlan* blocks() const;
  // The convolution without taps that meet only zeros at this input length; null if none does.
  // `kept` says where its weights stand in `values`.
  const ConvPlan* fewer_taps(int64_t length) const;
  at::Tensor kept;
  // The plan for tensors in lanes. Copying rows is cheap there, so a few taps take a segment each:
  // rows apart would make short tiles, and in wgrad leave the order.
  const ConvPlan& in_lanes() const;
  const int32_t* pointers() const { return crow_.data(); }
  const int32_t* taps() const { return col_.data(); }
  int64_t nbytes() const;  // of all that was made so far

 private:
  const bool apart_;
  const std::vector<int32_t> crow_, col_;
  const CorrelationPlan fprop_;
  mutable std::atomic<int64_t> nbytes_;
  mutable std::once_flag dgrad_once_, wgrad_once_, blocks_once_;
  mutable DgradPlan dgrad_;
  mutable WgradPlan wgrad_;
  mutable std::optional<BlockPlan> blocks_;
  // A list without a lock, which a fork might leave locked.
  mutable std::atomic<const ConvPlan*> fewer_taps_ = nullptr, in_lanes_ = nullptr;
  const ConvPlan* next_ = nullptr;
};
using ConvPlanPtr = c10::intrusive_ptr<const ConvPlan>;

}  // namespace sparseconv
