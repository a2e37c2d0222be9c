#include "conv_plan.h"

#include "../../checks.h"

namespace sparseconv {

namespace {

void check_pattern(const Geometry& g, const Tensor& crow, const Tensor& col) {
  check_indices(col, "col_indices", col.numel());
  check_below(col, "col_indices", g.kernel_size);
  check_pointers(crow, "crow_indices", g.n_kernels(), col.numel());
}

std::vector<int32_t> copied(const Tensor& indices) {
  const int32_t* data = indices.const_data_ptr<int32_t>();
  return {data, data + indices.numel()};
}

template <typename... Vectors>
int64_t bytes_of(const Vectors&... vectors) {
  return static_cast<int64_t>((... + (vectors.size() * sizeof(vectors[0]))));
}

}  // namespace

ConvPlan::ConvPlan(const Geometry& geometry, const Tensor& crow, const Tensor& col)
    : geometry(geometry),
      nnz((check_pattern(geometry, crow, col), col.numel())),
      crow_(copied(crow)),
      col_(copied(col)),
      fprop_(fprop_plan(geometry, crow_.data(), col_.data())),
      nbytes_(bytes_of(crow_, col_) + fprop_.entries.nbytes()) {}

const DgradPlan& ConvPlan::dgrad() const {
  std::call_once(dgrad_once_, [this] {
    check_phases(geometry);
    dgrad_ = dgrad_plan(geometry, crow_.data(), col_.data());
    nbytes_ += bytes_of(dgrad_.index);
    for (const CorrelationPlan& phase : dgrad_.phases) {
      nbytes_ += phase.entries.nbytes();
    }
  });
  return dgrad_;
}

const WgradPlan& ConvPlan::wgrad() const {
  std::call_once(wgrad_once_, [this] {
    wgrad_ = wgrad_plan(geometry, crow_.data(), col_.data());
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

}  // namespace sparseconv
