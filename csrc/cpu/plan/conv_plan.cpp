#include "conv_plan.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/zeros.h>

#include <map>
#include <mutex>

#include "../../checks.h"
#include "indices.h"

namespace sparseconv {

namespace {

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

std::vector<int32_t> copied(const Tensor& indices) {
  const int32_t* data = indices.const_data_ptr<int32_t>();
  return {data, data + indices.numel()};
}

int64_t bytes_of(std::initializer_list<const std::vector<int32_t>*> arrays) {
  int64_t bytes = 0;
  for (const std::vector<int32_t>* array : arrays) {
    bytes += static_cast<int64_t>(array->size() * sizeof(int32_t));
  }
  return bytes;
}

}  // namespace

ConvPlan::ConvPlan(const Geometry& geometry, const Tensor& crow, const Tensor& col)
    : geometry(geometry),
      nnz((check_pattern(geometry, crow, col), col.numel())),
      crow_(copied(crow)),
      col_(copied(col)),
      fprop_rows_(nnz + kAhead),
      fprop_((plan_fprop(geometry, crow_.data(), col_.data(), fprop_rows_.data()),
              fprop_plan(geometry, crow_.data(), fprop_rows_.data()))),
      nbytes_(bytes_of({&crow_, &col_, &fprop_rows_}) + fprop_.entries.nbytes()) {}

const DgradPlan& ConvPlan::dgrad() const {
  std::call_once(dgrad_once_, [this] {
    check_phases(geometry);
    dgrad_pointers_.resize(geometry.stride * geometry.n_kernels() + 1);
    dgrad_rows_.resize(nnz + kAhead);
    dgrad_index_.resize(nnz);
    plan_dgrad(geometry, crow_.data(), col_.data(), dgrad_pointers_.data(), dgrad_rows_.data(),
               dgrad_index_.data());
    dgrad_ = dgrad_plan(geometry, dgrad_pointers_.data(), dgrad_rows_.data(), dgrad_index_.data());
    nbytes_ += bytes_of({&dgrad_pointers_, &dgrad_rows_, &dgrad_index_});
    for (const CorrelationPlan& phase : dgrad_.phases) {
      nbytes_ += phase.entries.nbytes();
    }
  });
  return dgrad_;
}

const WgradPlan& ConvPlan::wgrad() const {
  std::call_once(wgrad_once_, [this] {
    wgrad_rows_.resize(nnz);
    wgrad_batches_.resize(batches_size(geometry, nnz));
    plan_wgrad(geometry, crow_.data(), col_.data(), wgrad_rows_.data(), wgrad_batches_.data());
    wgrad_ = wgrad_plan(geometry, crow_.data(), wgrad_rows_.data(), wgrad_batches_.data());
    nbytes_ += bytes_of({&wgrad_rows_, &wgrad_batches_, &wgrad_.row_starts});
  });
  return wgrad_;
}

const ConvPlan& bias_plan(int64_t channels) {
  static std::mutex& mutex = *new std::mutex;
  static auto& plans = *new std::map<int64_t, ConvPlan>;  // as many as layers have widths
  const std::lock_guard<std::mutex> lock(mutex);
  auto found = plans.find(channels);
  if (found == plans.end()) {
    const Geometry geometry{channels, 1, 1, 1, 0, 0, 1, 1, PaddingMode::zeros};
    const Tensor crow = at::arange(channels + 1, at::kInt), col = at::zeros({channels}, at::kInt);
    found = plans.try_emplace(channels, geometry, crow, col).first;
  }
  return found->second;
}

}  // namespace sparseconv
