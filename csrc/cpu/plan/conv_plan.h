// The plans of a sparse convolution: what its kernels need of a pattern beside the weights.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>

#include <atomic>
#include <mutex>
#include <optional>
#include <vector>

#include "layout.h"

namespace sparseconv {

// fprop, or one phase of the stride of dgrad.
struct CorrelationPlan {
  Layout layout;
  BlockEntries entries;
};

struct DgradPlan {
  std::vector<CorrelationPlan> phases;
  const int32_t* index;  // of each entry, where its weight stands in `values`
};

struct WgradPlan {
  Layout layout;
  int64_t n_blocks;
  const int32_t* block_starts;  // as in WeightGradient
  const WeightBatch* batches;
  const int32_t* rows;
  std::vector<int32_t> row_starts;
  int64_t nnz;
};

// Of index tensors that plan_fprop, plan_dgrad and plan_wgrad (indices.h) made, which have to
// outlive them.
CorrelationPlan fprop_plan(const Geometry& g, const int32_t* crow, const int32_t* rows);
DgradPlan dgrad_plan(const Geometry& g,
                     const int32_t* pointers,
                     const int32_t* rows,
                     const int32_t* index);
WgradPlan wgrad_plan(const Geometry& g,
                     const int32_t* crow,
                     const int32_t* rows,
                     const int32_t* batches);

// Throws ValueError or TypeError if crow and col are not those of a pattern of this geometry.
void check_pattern(const Geometry& g, const at::Tensor& crow, const at::Tensor& col);

// The plans of a pattern and geometry, made and checked once. A custom class, so that autograd's
// nodes can hold it.
class ConvPlan : public torch::CustomClassHolder {
 public:
  // Throws as check_pattern does.
  ConvPlan(const at::Tensor& crow, const at::Tensor& col, at::IntArrayRef geometry);

  const Geometry geometry;
  const at::Tensor crow, col;
  const int64_t nnz;
  // Throws RuntimeError if somebody has changed the index tensors, as the next three do.
  void check_untouched() const;
  const CorrelationPlan& fprop() const;
  const DgradPlan& dgrad() const;  // made when first asked for, as are the next
  const WgradPlan& wgrad() const;
  // Of the convolution that adds a bias to each output channel: its weights are the bias, its input
  // is one channel of ones.
  const ConvPlan& bias() const;
  // Of all that was made so far, beside crow and col.
  int64_t nbytes() const { return nbytes_; }

 private:
  const int64_t crow_version_, col_version_;
  std::vector<int32_t> fprop_rows_;
  std::optional<CorrelationPlan> fprop_;
  mutable std::atomic<int64_t> nbytes_;
  mutable std::once_flag dgrad_once_, wgrad_once_, bias_once_;
  mutable std::vector<int32_t> dgrad_pointers_, dgrad_rows_, dgrad_index_;
  mutable std::vector<int32_t> wgrad_rows_, wgrad_batches_;
  mutable DgradPlan dgrad_;
  mutable WgradPlan wgrad_;
  mutable c10::intrusive_ptr<ConvPlan> bias_;
};
using ConvPlanPtr = c10::intrusive_ptr<ConvPlan>;

}  // namespace sparseconv
