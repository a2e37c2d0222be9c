#include "plan_cache.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/zeros.h>
#include <c10/core/StorageImpl.h>
#include <pthread.h>

#include <algorithm>
#include <array>
#include <map>
#include <mutex>
#include <unordered_map>
#include <utility>

#include "../../checks.h"

namespace sparseconv {

namespace {

using Weak = c10::weak_intrusive_ptr<c10::StorageImpl>;

// The memory of both tensors, and the geometry.
using Key = std::array<int64_t, 15>;

struct Hash {
  size_t operator()(const Key& key) const {
    uint64_t hash = 0;
    for (const int64_t part : key) {
      hash = (hash ^ static_cast<uint64_t>(part)) * 0x9E3779B97F4A7C15u;
      hash ^= hash >> 32;
    }
    return hash;
  }
};

// While an entry lives, no other storage can have the address in its key.
struct Entry {
  Weak crow, col;
  int64_t version;
  ConvPlanPtr plan;

  bool is_dead() const { return crow.expired() || col.expired(); }
};

struct Cache {
  std::mutex mutex;
  std::unordered_map<Key, Entry, Hash> entries;
  std::map<std::pair<int64_t, int64_t>, ConvPlan> pointwise;
  size_t sweep_at = 64;  // entries; at least half of them may be alive

  void sweep() {
    std::erase_if(entries, [](const auto& item) { return item.second.is_dead(); });
    sweep_at = std::max<size_t>(64, 2 * entries.size());
  }
};

Cache& cache() {
  static Cache& cache = *new Cache;  // plans of static tensors may be asked for until the end
  // A child must not inherit the lock of a thread that it does not have.
  [[maybe_unused]] static const int at_fork = pthread_atfork(
      [] { sparseconv::cache().mutex.lock(); }, [] { sparseconv::cache().mutex.unlock(); },
      [] { sparseconv::cache().mutex.unlock(); });
  return cache;
}

bool is_index_array(const Tensor& x) {
  return x.is_cpu() && x.layout() == at::kStrided && x.scalar_type() == at::kInt && x.dim() == 1 &&
         x.is_contiguous() && x.has_storage() && !x.is_inference();
}

int64_t address_of(const Tensor& x) {
  return reinterpret_cast<int64_t>(x.storage().unsafeGetStorageImpl());
}

Weak weak(const Tensor& x) {
  return x.storage().getWeakStorageImpl();
}

Key key_of(const Tensor& crow, const Tensor& col, at::IntArrayRef geometry) {
  Key key = {address_of(crow), crow.storage_offset(), crow.numel(),
             address_of(col),  col.storage_offset(),  col.numel()};
  std::copy_n(geometry.begin(), std::min<size_t>(geometry.size(), 9), key.begin() + 6);
  return key;
}

// How often the tensors of a pattern were changed in place; none counts in torch.inference_mode().
int64_t version_of(const Tensor& crow, const Tensor& col) {
  const auto version = [](const Tensor& x) {
    return x.is_inference() ? 0 : static_cast<int64_t>(x._version());
  };
  return version(crow) + version(col);  // they only rise
}

bool was_made_of(const ConvPlan& plan, const Tensor& crow, const Tensor& col) {
  const auto same = [](const int32_t* kept, const Tensor& x) {
    const int32_t* now = x.const_data_ptr<int32_t>();
    return std::equal(now, now + x.numel(), kept);
  };
  return same(plan.pointers(), crow) && same(plan.taps(), col);
}

}  // namespace

ConvPlanPtr known_plan(const Tensor& crow, const Tensor& col, at::IntArrayRef geometry) {
  if (!is_index_array(crow) || !is_index_array(col)) {
    return {};
  }
  const Key key = key_of(crow, col, geometry);
  const int64_t version = version_of(crow, col);
  const std::lock_guard<std::mutex> lock(cache().mutex);
  const auto found = cache().entries.find(key);
  if (found == cache().entries.end()) {
    return {};
  }
  Entry& entry = found->second;
  // DistributedDataParallel writes what is there already, before each forward pass.
  if (entry.version != version && was_made_of(*entry.plan, crow, col)) {
    entry.version = version;
  }
  return entry.version == version ? entry.plan : ConvPlanPtr();
}

ConvPlanPtr plan_of(const Tensor& crow, const Tensor& col, at::IntArrayRef numbers) {
  const Geometry geometry = check_geometry(numbers);
  if (ConvPlanPtr plan = known_plan(crow, col, numbers)) {
    return plan;
  }
  const int64_t version = version_of(crow, col);
  const auto made = c10::make_intrusive<const ConvPlan>(geometry, crow, col);
  if (!is_index_array(crow) || !is_index_array(col)) {
    return made;  // of inference mode: nothing would tell that they were changed
  }
  const Key key = key_of(crow, col, numbers);
  const std::lock_guard<std::mutex> lock(cache().mutex);
  if (cache().entries.size() >= cache().sweep_at) {
    cache().sweep();
  }
  cache().entries.insert_or_assign(key, Entry{weak(crow), weak(col), version, made});
  return made;
}

const ConvPlan& pointwise_plan(int64_t out_channels, int64_t in_channels) {
  const std::lock_guard<std::mutex> lock(cache().mutex);
  const auto key = std::make_pair(out_channels, in_channels);
  auto found = cache().pointwise.find(key);
  if (found == cache().pointwise.end()) {
    const Geometry g{out_channels, in_channels, 1, 1, 0, 0, 1, 1, PaddingMode::zeros};
    const Tensor crow = at::arange(g.n_kernels() + 1, at::kInt);
    const Tensor col = at::zeros({g.n_kernels()}, at::kInt);
    found = cache().pointwise.try_emplace(key, g, crow, col).first;
  }
  return found->second;
}

int64_t plan_bytes(const Tensor& crow, const Tensor& col) {
  const std::lock_guard<std::mutex> lock(cache().mutex);
  int64_t bytes = 0;
  for (const auto& [key, entry] : cache().entries) {
    const bool own = key[0] == address_of(crow) && key[3] == address_of(col);
    bytes += own && entry.plan ? entry.plan->nbytes() : 0;
  }
  return bytes;
}

}  // namespace sparseconv
