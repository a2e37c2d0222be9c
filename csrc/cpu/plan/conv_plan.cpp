#include "conv_plan.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/zeros.h>

#include "../../checks.h"
#include "indices.h"

namespace sparseconv {

CorrelationPlan fprop_plan(const Geometry& g, const int32_t* crow, const int32_t* rows) {
  Layout layout = fprop_layout(g);
  BlockEntries entries(crow, rows, g.out_channels, g.channels_per_group, g.groups, layout, false);
  return {std::move(layout), std::move(entries)};
}

DgradPlan dgrad_plan(const Geometry& g,
                     const int32_t* pointers,
                     const int32_t* rows,
                     const int32_t* index) {
  DgradPlan plan{{}, index};
  std::vector<int64_t> taps;
  for (int64_t phase = 0; phase < g.stride; ++phase, pointers += g.n_kernels()) {
    Layout layout = dgrad_layout(g, phase, &taps);
    BlockEntries entries(pointers, rows + pointers[0], g.in_channels(), g.out_channels / g.groups,
                         g.groups, layout, true);
    plan.phases.push_back({std::move(layout), std::move(entries)});
  }
  return plan;
}

WgradPlan wgrad_plan(const Geometry& g,
                     const int32_t* crow,
                     const int32_t* rows,
                     const int32_t* batches) {
  WgradPlan plan{};
  plan.layout = wgrad_layout(g);
  plan.n_blocks = ceil_div(g.channels_per_group, plan.layout.block_channels);
  plan.block_starts = batches;
  plan.batches = batches_of(g, batches);
  plan.rows = rows;
  for (int64_t row = 0; row <= g.out_channels; ++row) {
    plan.row_starts.push_back(crow[row * g.channels_per_group]);
  }
  plan.nnz = plan.row_starts.back();
  return plan;
}

void check_pattern(const Geometry& g, const Tensor& crow, const Tensor& col) {
  check_indices(col, "col_indices", col.numel());
  check_below(col, "col_indices", g.kernel_size);
  check_pointers(crow, "crow_indices", g.n_kernels(), col.numel());
}

namespace {

// How often a tensor was changed in place; those of inference mode do not count it.
int64_t version_of(const Tensor& x) {
  return x.is_inference() ? 0 : static_cast<int64_t>(x._version());
}

int64_t bytes_of(std::initializer_list<const std::vector<int32_t>*> arrays) {
  int64_t bytes = 0;
  for (const std::vector<int32_t>* array : arrays) {
    bytes += static_cast<int64_t>(array->size() * sizeof(int32_t));
  }
  return bytes;
}

}  // namespace

ConvPlan::ConvPlan(const Tensor& crow, const Tensor& col, at::IntArrayRef numbers)
    : geometry(check_geometry(numbers)),
      crow(crow),
      col(col),
      nnz(col.numel()),
      crow_version_(version_of(crow)),
      col_version_(version_of(col)) {
  check_pattern(geometry, crow, col);
  fprop_rows_.resize(nnz + kAhead);
  const int32_t* pointers = crow.const_data_ptr<int32_t>();
  plan_fprop(geometry, pointers, col.const_data_ptr<int32_t>(), fprop_rows_.data());
  fprop_.emplace(fprop_plan(geometry, pointers, fprop_rows_.data()));
  nbytes_ = bytes_of({&fprop_rows_}) + fprop_->entries.nbytes();
}

void ConvPlan::check_untouched() const {
  TORCH_CHECK(
      version_of(crow) == crow_version_ && version_of(col) == col_version_ && col.numel() == nnz,
      "the index arrays of a pattern were modified in place, so it is invalid; clone them "
      "before a change and build a new KernelCSR");
}

const CorrelationPlan& ConvPlan::fprop() const {
  check_untouched();
  return *fprop_;
}

const DgradPlan& ConvPlan::dgrad() const {
  check_untouched();
  std::call_once(dgrad_once_, [this] {
    check_phases(geometry);
    check_pattern(geometry, crow, col);  // a change through NumPy is not counted
    dgrad_pointers_.resize(geometry.stride * geometry.n_kernels() + 1);
    dgrad_rows_.resize(nnz + kAhead);
    dgrad_index_.resize(nnz);
    plan_dgrad(geometry, crow.const_data_ptr<int32_t>(), col.const_data_ptr<int32_t>(),
               dgrad_pointers_.data(), dgrad_rows_.data(), dgrad_index_.data());
    dgrad_ = dgrad_plan(geometry, dgrad_pointers_.data(), dgrad_rows_.data(), dgrad_index_.data());
    nbytes_ += bytes_of({&dgrad_pointers_, &dgrad_rows_, &dgrad_index_});
    for (const CorrelationPlan& phase : dgrad_.phases) {
      nbytes_ += phase.entries.nbytes();
    }
  });
  return dgrad_;
}

const WgradPlan& ConvPlan::wgrad() const {
  check_untouched();
  std::call_once(wgrad_once_, [this] {
    check_pattern(geometry, crow, col);
    const int32_t* pointers = crow.const_data_ptr<int32_t>();
    wgrad_rows_.resize(nnz);
    wgrad_batches_.resize(batches_size(geometry, nnz));
    plan_wgrad(geometry, pointers, col.const_data_ptr<int32_t>(), wgrad_rows_.data(),
               wgrad_batches_.data());
    wgrad_ = wgrad_plan(geometry, pointers, wgrad_rows_.data(), wgrad_batches_.data());
    nbytes_ += bytes_of({&wgrad_rows_, &wgrad_batches_, &wgrad_.row_starts});
  });
  return wgrad_;
}

const ConvPlan& ConvPlan::bias() const {
  std::call_once(bias_once_, [this] {
    const int64_t channels = geometry.out_channels;
    const at::TensorOptions options = crow.options();
    bias_ = c10::make_intrusive<ConvPlan>(at::arange(channels + 1, options),
                                          at::zeros({channels}, options),
                                          std::vector<int64_t>{channels, 1, 1, 1, 0, 0, 1, 1, 0});
    bias_->wgrad();  // what it is for
    nbytes_ += bias_->nbytes();
  });
  return *bias_;
}

}  // namespace sparseconv
